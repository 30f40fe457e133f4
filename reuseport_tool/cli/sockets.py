"""sockets [filters]"""

from __future__ import annotations

from typing import Any

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.socket_filters import filters
from reuseport_tool.sockets import select as sockets
from reuseport_tool.sockets.select import Filter


@click.command("sockets")
@filters
@pass_context
def command(ctx: Context, /, **options: Any) -> None:
    """List the sockets of the network namespace that match all filters, by BPF iterators.

    The last line says whether the kernel promises that a socket that lives through the walk is seen
    exactly once. A connection's generation is known while its process still has listeners of that
    generation; afterwards name it by --pid.

    \b
    Examples:
      reuseport-tool sockets --endpoint 8080
      reuseport-tool sockets --endpoint 8080 --generation 1 --state established
      reuseport-tool sockets --pid 4242 --idle 60
      reuseport-tool --json sockets --protocol udp | jq .exactly_once
    """
    show.result(sockets.sockets(Filter(**options), ctx.bpffs), ctx.json)
