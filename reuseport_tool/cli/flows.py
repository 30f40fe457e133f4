"""flows ENDPOINT"""

from __future__ import annotations

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.types import COUNT, ENDPOINT, GENERATION
from reuseport_tool.group import flows
from reuseport_tool.models import Endpoint


@click.command("flows")
@click.argument("endpoint", type=ENDPOINT)
@click.option("--generation", type=GENERATION, help="Only those of this generation.")
@click.option("--limit", type=COUNT, default=1000, show_default=True, help="Show at most this many.")
@pass_context
def command(ctx: Context, endpoint: Endpoint, generation: int | None, limit: int) -> None:
    """List the flows of the UDP groups that ENDPOINT means, the most recent first.

    A group records flows once it is attached with --flows.

    \b
    Examples:
      reuseport-tool flows udp://:4433
      reuseport-tool flows udp://10.0.0.1:51820 --generation 1
    """
    show.result(flows.list_flows(endpoint, ctx.bpffs, generation, limit), ctx.json)
