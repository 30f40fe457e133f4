"""`make demo`: gunicorn under a steady load of new connections, replaced plainly, then by the tool.

Both arms run the same server, the same load and the same number of restarts, each arm in a network
namespace and bpffs of its own. Exit code 0 only if the plain restarts lost connections and the
reloads lost none.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from reuseport_tool.kernel import bpffs, libc, netns
from reuseport_tool.kernel.processes import Process, topmost
from reuseport_tool.operations.waiting import wait_until
from tests.servers import servers
from tests.servers.load import Ledger, Load
from tests.tool import Tool

_RESTARTS = 3
_CLIENTS = 64


def main() -> int:
    console = Console(stderr=True, highlight=False)
    console.print(f"gunicorn --reuse-port under {_CLIENTS} clients, restarted {_RESTARTS} times in each arm")
    plain = _arm(console, "plain restart", _plain_restart)
    reloaded = _arm(console, "reuseport-tool reload", _reload)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(_table(plain, reloaded))
    if not plain.lost:
        console.print("The plain restarts lost nothing, so this run proves nothing: run it again.")
    if reloaded.lost:
        console.print("The reloads lost connections.")
    return 0 if plain.lost and not reloaded.lost else 1


def _arm(console: Console, name: str, restart) -> Ledger:  # type: ignore[no-untyped-def]
    console.print(f"… {name}")
    with netns.throw_away(), _own_bpffs() as folder:
        server = subprocess.Popen(servers.gunicorn().command, start_new_session=True)
        try:
            servers.await_listeners(servers.WORKERS)
            servers.await_answer()
            return _under_load(restart, Tool(folder), console)
        finally:
            _end_listeners()
            server.wait()


def _under_load(restart, tool: Tool, console: Console) -> Ledger:  # type: ignore[no-untyped-def]
    with Load(servers.ADDRESS, servers.PORT, _CLIENTS) as load:
        for _ in range(_RESTARTS):
            _await_queue()
            restart(tool, console)
        _await_queue()
        return load.stop()


def _await_queue() -> None:
    """Wait until connections queue at the server, which is when a restart hurts."""
    assert wait_until(lambda: sum(m.socket.accept_queue or 0 for m in servers.listeners()) > _CLIENTS // 4, 30)


def _plain_restart(_tool: Tool, _console: Console) -> None:
    """As a deploy script does it: the new server first, then SIGTERM for the old one."""
    old = servers.listeners()
    cookies = frozenset(member.cookie for member in old)
    subprocess.Popen(servers.gunicorn().command, start_new_session=True)
    servers.await_listeners(servers.WORKERS, besides=cookies)
    _stop(topmost({holder.pid for member in old for holder in member.holders}))
    assert wait_until(lambda: not cookies & {member.cookie for member in servers.listeners()}, 30)


def _reload(tool: Tool, console: Console) -> None:
    report = tool.ok("reload", servers.PORT, "--", *servers.gunicorn().command)
    moved = report["migrated"]
    console.print(
        f"  reloaded in {report['duration_s']:.2f} s, {moved['total']} waiting connections moved", style="dim"
    )


def _stop(pids: list[int]) -> None:
    for pid in pids:
        process = Process(pid)
        process.signal(signal.SIGTERM)
        process.close()


def _end_listeners() -> None:
    _stop(topmost({holder.pid for member in servers.listeners() for holder in member.holders}))
    wait_until(lambda: not servers.listeners(), 30)


@contextlib.contextmanager
def _own_bpffs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        libc.mount("bpf", folder, "bpf")
        try:
            yield Path(folder)
        finally:
            bpffs.remove_folder(Path(folder) / "reuseport-tool")
            subprocess.run(["umount", folder], check=True)


def _table(plain: Ledger, reloaded: Ledger) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0))
    for column in (
        "",
        "connections",
        "answered",
        "reset",
        "refused",
        "unanswered",
        "timed out",
        "longest wait",
        "load",
    ):
        made.add_column(column, justify="left" if not column else "right")
    for name, ledger in (("plain restart", plain), ("reuseport-tool reload", reloaded)):
        made.add_row(
            name,
            *map(str, (ledger.connections, ledger.answered, ledger.reset, ledger.refused, ledger.unanswered)),
            str(ledger.timed_out),
            f"{ledger.longest_wait_s * 1000:.0f} ms",
            f"{ledger.duration_s:.1f} s",
            style="red" if ledger.lost else "green",
        )
    return made


if __name__ == "__main__":
    start = time.monotonic()
    code = main()
    print(f"demo took {time.monotonic() - start:.1f} s", file=sys.stderr)
    sys.exit(code)
