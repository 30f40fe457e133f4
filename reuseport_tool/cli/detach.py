"""detach ENDPOINT"""

from __future__ import annotations

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import ENDPOINT, Context, examples, pass_context
from reuseport_tool.group import detach
from reuseport_tool.models import Endpoint


@click.command(
    "detach",
    short_help="Remove the program; the kernel chooses again.",
    epilog=examples("reuseport-tool detach 8080", "reuseport-tool --netns web detach '[::]:80'"),
)
@click.argument("endpoint", type=ENDPOINT)
@click.option("--wait", "wait_s", type=float, default=0.0, metavar="SECONDS", help="Wait for another run's lock.")
@pass_context
def command(ctx: Context, endpoint: Endpoint, wait_s: float) -> None:
    """Remove program and pins from every group that ENDPOINT means.

    Listeners and their connections stay as they are. From then on a closing listener loses what is
    in its queues, unless net.ipv4.tcp_migrate_req is on.
    """
    show.result(detach.detach(endpoint, ctx.bpffs, wait_s), ctx.json)
