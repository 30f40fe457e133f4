"""migrate-req [on|off]"""

from __future__ import annotations

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.group import migrate_req


@click.command("migrate-req")
@click.argument("state", type=click.Choice(["on", "off"]), required=False)
@pass_context
def command(ctx: Context, state: str | None) -> None:
    """Read the kernel's own switch for migration in the network namespace, or set it.

    If it is on and the group has no program, the kernel moves the connections of a closing listener to other
    listeners of the group, which it chooses by a hash.

    \b
    Examples:
      reuseport-tool migrate-req
      reuseport-tool --netns web migrate-req on
    """
    show.result(migrate_req.migrate_req(None if state is None else state == "on"), ctx.json)
