"""destroy [filters]"""

from __future__ import annotations

from typing import Any

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.socket_filters import filters
from reuseport_tool.cli.types import OneOf
from reuseport_tool.sockets import destroy
from reuseport_tool.sockets.destroy import DestroyEngine
from reuseport_tool.sockets.select import Filter


@click.command("destroy")
@filters
@click.option("--yes", "act", is_flag=True, help="End them. Without --yes nothing changes.")
@click.option("--engine", type=OneOf(DestroyEngine), default="auto", hidden=True)
@pass_context
def command(ctx: Context, /, act: bool, engine: DestroyEngine, **options: Any) -> int:
    """End the sockets that match all filters; at least one filter is needed.

    Their programs get ECONNABORTED, and the peers of TCP connections get a reset. Listeners are left alone
    without --state listen. Half-open and TIME_WAIT sockets are always left alone: no program holds them. A bound
    UDP socket gets the error and loses its peer, but stays bound until its program closes it.

    Exits with 1 if the kernel refused to end a chosen socket.

    \b
    Examples:
      reuseport-tool destroy --pid 4242 --state established
      reuseport-tool destroy --endpoint 8080 --idle 300 --yes
      reuseport-tool destroy --cookie 77 --yes
    """
    report = destroy.destroy(Filter(**options), ctx.bpffs, act=act, engine=engine)
    show.result(report, ctx.json)
    return 1 if any(ending.result == "refused" for ending in report.endings) else 0
