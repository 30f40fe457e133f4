"""detach ENDPOINT"""

from __future__ import annotations

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import wait
from reuseport_tool.cli.types import ENDPOINT
from reuseport_tool.errors import UsageError
from reuseport_tool.group import detach
from reuseport_tool.models import Endpoint


@click.command("detach")
@click.argument("endpoint", type=ENDPOINT, required=False)
@click.option("--all", "everything", is_flag=True, help="Detach every group of the network namespace.")
@click.option("--gone", is_flag=True, help="Remove the pins of network namespaces that no longer exist.")
@wait
@pass_context
def command(ctx: Context, endpoint: Endpoint | None, everything: bool, gone: bool, wait_s: float) -> None:
    """Remove program and pins from every group that ENDPOINT means.

    Listeners and their connections stay as they are. From then on, a closing listener loses what is
    in its queues, unless net.ipv4.tcp_migrate_req is on. A program of this tool is also taken off where its pins are
    lost or damaged.

    \b
    Examples:
      reuseport-tool detach 8080
      reuseport-tool --netns web detach '[::]:80'
      reuseport-tool detach --all
    """
    if [endpoint is not None, everything, gone].count(True) != 1:
        raise UsageError(
            "name an ENDPOINT, or give --all or --gone", hint="one of the three: 'status' lists what is attached"
        )
    if gone:
        report = detach.detach_gone(ctx.bpffs, wait_s)
    elif endpoint is None:
        report = detach.detach_all(ctx.bpffs, wait_s)
    else:
        report = detach.detach(endpoint, ctx.bpffs, wait_s)
    show.result(report, ctx.json)
