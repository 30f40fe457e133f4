"""attach ENDPOINT"""

from __future__ import annotations

from pathlib import Path

import click

from reuseport_tool.cli import render
from reuseport_tool.cli.context import ENDPOINT, Context, examples, pass_context
from reuseport_tool.errors import UsageError
from reuseport_tool.models import Endpoint, Policy
from reuseport_tool.operations import attach


@click.command(
    "attach",
    short_help="Let a BPF program choose the listener of each new connection.",
    epilog=examples(
        "reuseport-tool attach 8080",
        "reuseport-tool attach 10.0.0.1:443 --policy round-robin",
        "reuseport-tool attach '[::]:80' --program my_policy.c",
    ),
)
@click.argument("endpoint", type=ENDPOINT)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    help="Which listener of the working generation gets a connection.  [default: hash]",
)
@click.option(
    "--program", type=click.Path(path_type=Path), metavar="FILE.c", help="A policy of your own, see bpf/reuseport.h."
)
@click.option("--wait", "wait_s", type=float, default=0.0, metavar="SECONDS", help="Wait for another run's lock.")
@pass_context
def command(ctx: Context, endpoint: Endpoint, policy: str | None, program: Path | None, wait_s: float) -> None:
    """Attach the program to every group that ENDPOINT means.

    The listeners that are there become generation 1. Connections that already wait in their queues
    are safe from then on, too. Run it again to register listeners that came later, or to change the
    policy; where nothing is to do it says so and exits with 0.
    """
    if policy and program:
        raise UsageError("--policy and --program exclude each other")
    report = attach.attach(endpoint, Policy(policy) if policy else None, program, ctx.bpffs, wait_s)
    render.show(report, ctx.json)
