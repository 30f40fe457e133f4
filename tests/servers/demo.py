"""`make demo`: gunicorn under a steady load of new connections, replaced plainly, then by the tool.

Both arms run the same server, the same load and the same number of restarts, each arm in a network
namespace and bpffs of its own. Exit code 0 only if the plain restarts lost connections and the
reloads lost none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel import netns
from tests.servers import restart, servers
from tests.tool import Tool

_RESTARTS = 3
_CLIENTS = 128
_QUEUED = 32


def main() -> int:
    console = Console(stderr=True, highlight=False)
    console.print(f"gunicorn --reuse-port under {_CLIENTS} clients, restarted {_RESTARTS} times in each arm")
    server = servers.gunicorn()
    console.print("… plain restart: start the new server, SIGTERM for the old one")
    plain = _arm(lambda _tool: restart.plainly(server))
    console.print("… reuseport-tool reload")
    reloaded = _arm(lambda tool: _report(console, restart.by_the_tool(tool, server)))
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(_table(plain, reloaded))
    if not plain.lost:
        console.print("The plain restarts lost nothing, so this run proves nothing: run it again.")
    if reloaded.lost:
        console.print("The reloads lost connections.")
    return 0 if plain.lost and not reloaded.lost else 1


def _arm(once: Callable[[Tool], None]) -> Ledger:
    with netns.throw_away(), restart.own_bpffs() as folder:
        try:
            restart.start(servers.gunicorn())
            with Load(servers.ADDRESS, servers.PORT, _CLIENTS) as load:
                for _ in range(_RESTARTS):
                    restart.await_queue(_QUEUED)
                    once(Tool(folder))
                restart.await_queue(_QUEUED)
                return load.stop()
        finally:
            restart.end_all()


def _report(console: Console, report: dict[str, dict[str, int]]) -> None:
    waiting, moved = report["queued_at_stop"]["accept_queue"], report["migrated"]["total"]
    console.print(f"  reloaded in {report['duration_s']:.2f} s: {waiting} connections waited, {moved} were moved")


def _table(plain: Ledger, reloaded: Ledger) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "connections", "answered", "reset", "refused", "unanswered", "timed out", "longest", "load"):
        made.add_column(column, justify="right" if column else "left")
    for name, ledger in (("plain restart", plain), ("reuseport-tool reload", reloaded)):
        lost = (ledger.reset, ledger.refused, ledger.unanswered, ledger.timed_out)
        longest, duration = f"{ledger.longest_wait_s * 1000:.0f} ms", f"{ledger.duration_s:.1f} s"
        row = (name, ledger.connections, ledger.answered, *lost, longest, duration)
        made.add_row(*map(str, row), style="red" if ledger.lost else "green")
    return made


if __name__ == "__main__":
    start = time.monotonic()
    code = main()
    print(f"demo took {time.monotonic() - start:.1f} s", file=sys.stderr)
    sys.exit(code)
