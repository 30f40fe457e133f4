"""status [ENDPOINT]"""

from __future__ import annotations

import time

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.types import ENDPOINT, DurationType
from reuseport_tool.errors import UsageError
from reuseport_tool.group.status import Observer
from reuseport_tool.kernel import mib
from reuseport_tool.models import Endpoint


@click.command("status")
@click.argument("endpoint", type=ENDPOINT, required=False)
@click.option("--watch", is_flag=True, help="Show rates, shares and queues live until Ctrl-C.")
@click.option("--check", is_flag=True, help="Exit with 1 if there is a problem.")
@click.option(
    "--interval", "interval_s", type=DurationType(0.1), default="1s", show_default=True, help="Between two looks."
)
@pass_context
def command(ctx: Context, endpoint: Endpoint | None, watch: bool, check: bool, interval_s: float) -> int:
    """Show the SO_REUSEPORT groups of the network namespace, or those that ENDPOINT means.

    Each listener has a flag: "working" (it gets new connections), "old" (of an older generation), "foreign" (in the
    group but not registered, so it gets nothing), or "-" where no program of this tool runs.

    With --check the exit code is 1 if there is a problem: pins are damaged, pins or a killed reload are left behind
    (stale), a program or listeners are not this tool's (foreign), one listener's queue is nearly full while others
    are nearly empty (imbalance), a UDP group has split, or its map of flows is too small (crowded).

    \b
    Examples:
      reuseport-tool status
      reuseport-tool status 8080 --watch
      reuseport-tool status --check
      reuseport-tool --json status :443
    """
    if watch and check:
        raise UsageError("--watch and --check exclude each other", hint="check in a run of its own")
    with Observer(endpoint, ctx.bpffs) as observer:
        if watch:
            return _watch(observer, ctx.json, interval_s)
        found = observer.read()
        show.result(found, ctx.json)
        return 1 if check and any(group.problems for group in found.groups) else 0


def _watch(observer: Observer, as_json: bool, interval_s: float) -> int:
    """Until Ctrl-C. On a terminal the last frame stays; elsewhere one result follows another."""
    from reuseport_tool.cli.show import live  # imports a part of rich that nothing else needs
    from reuseport_tool.group.old_side import OldSides

    old_sides = OldSides()
    with live.watching(as_json) as update:
        try:
            while True:
                update(old_sides.add(observer.read()), mib.read(), time.monotonic())
                time.sleep(interval_s)
        except KeyboardInterrupt:
            return 0
