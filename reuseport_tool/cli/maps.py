"""map list|show|add|remove|switch"""

from __future__ import annotations

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.compat import VerbGroup
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.types import COOKIE, ENDPOINT, GENERATION, PID, SLOT
from reuseport_tool.group import slots as maps
from reuseport_tool.models import Endpoint


@click.group("map", cls=VerbGroup)
def command() -> None:
    """Show and change which listener is in which slot of which generation.

    \b
    Examples:
      reuseport-tool map list
      reuseport-tool map add 8080 --pid 4242 --generation 2
      reuseport-tool map switch 8080 2
    """


@command.command("list", short_help="List the maps of all attached groups.")
@pass_context
def list_(ctx: Context) -> None:
    """List the maps of all attached groups of the network namespace.

    \b
    Examples:
      reuseport-tool map list
    """
    show.result(maps.list_maps(None, ctx.bpffs), ctx.json)


@command.command("show", short_help="Show the maps of some groups.")
@click.argument("endpoint", type=ENDPOINT)
@pass_context
def show_(ctx: Context, endpoint: Endpoint) -> None:
    """Show the maps of the groups that ENDPOINT means.

    \b
    Examples:
      reuseport-tool map show 8080
    """
    show.result(maps.list_maps(endpoint, ctx.bpffs), ctx.json)


@command.command("add")
@click.argument("endpoint", type=ENDPOINT)
@click.option(
    "--generation",
    type=GENERATION,
    help="Put them into this generation, a new one if need be.  [default: the working one]",
)
@click.option("--slot", type=SLOT, help="Put the listener into this slot.  [default: the first empty one]")
@click.option("--pid", type=PID, help="Only listeners that this process holds.")
@click.option("--cookie", type=COOKIE, help="Only the listener with this socket cookie.")
@pass_context
def add(
    ctx: Context, endpoint: Endpoint, generation: int | None, slot: int | None, pid: int | None, cookie: int | None
) -> None:
    """Register listeners of the group. By default, register all that are not registered yet.

    \b
    Examples:
      reuseport-tool map add 8080
      reuseport-tool map add 8080 --pid 4242 --generation 2
      reuseport-tool map add 8080 --cookie 77 --slot 3
    """
    report = maps.add(endpoint, ctx.bpffs, generation=generation, slot=slot, pid=pid, cookie=cookie)
    show.result(report, ctx.json)


@command.command("remove")
@click.argument("endpoint", type=ENDPOINT)
@click.option("--generation", type=GENERATION, required=True)
@click.option("--slot", type=SLOT, required=True)
@pass_context
def remove(ctx: Context, endpoint: Endpoint, generation: int, slot: int) -> None:
    """Take a listener out of its slot. It stays open but gets no new connections.

    \b
    Examples:
      reuseport-tool map remove 8080 --generation 1 --slot 3
    """
    show.result(maps.remove(endpoint, ctx.bpffs, generation=generation, slot=slot), ctx.json)


@command.command("switch")
@click.argument("endpoint", type=ENDPOINT)
@click.argument("generation", type=GENERATION)
@click.option("--force", is_flag=True, help="Switch even to a generation without an open listener.")
@pass_context
def switch(ctx: Context, endpoint: Endpoint, generation: int, force: bool) -> None:
    """Make GENERATION the working one. New connections go there from the next SYN on.

    \b
    Examples:
      reuseport-tool map switch 8080 2
    """
    show.result(maps.switch(endpoint, ctx.bpffs, generation=generation, force=force), ctx.json)
