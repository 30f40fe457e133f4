"""compile --output DIR"""

from __future__ import annotations

from pathlib import Path

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.programs import fill


@click.command("compile")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder for the programs. It is made if necessary.",
)
@click.option(
    "--program",
    "own",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.c",
    help="Also compile this policy of your own. Repeatable.",
)
@pass_context
def command(ctx: Context, output: Path, own: tuple[Path, ...]) -> None:
    """Compile every program that the tool may load on this kernel into DIR.

    A machine with the very same kernel build needs no BCC then: copy DIR there, owned by the user that runs the tool
    and writable by nobody else, and set REUSEPORT_TOOL_CACHE to it, or copy it to the place of that
    user's cache (docs/performance.md).

    \b
    Examples:
      reuseport-tool compile --output /var/cache/reuseport-tool
      reuseport-tool compile --output programs --program my_policy.c
      REUSEPORT_TOOL_CACHE=programs reuseport-tool attach 8080
    """
    with show.progress("programs") as progress:
        report = fill.fill(output, own, progress)
    show.result(report, ctx.json)
