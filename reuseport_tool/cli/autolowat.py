"""autolowat attach|detach|status"""

from __future__ import annotations

from pathlib import Path

import click

from reuseport_tool.autolowat import attachment as autolowat
from reuseport_tool.cli import show
from reuseport_tool.cli.compat import VerbGroup
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.types import PORTS, OneOf
from reuseport_tool.models import Engine

_CGROUP = click.option(
    "--cgroup", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A folder of cgroup2."
)


@click.group("autolowat", cls=VerbGroup)
def command() -> None:
    """Set SO_RCVLOWAT by the length in each frame's header, so that a reader is woken when a frame is there.

    \b
    Examples:
      reuseport-tool autolowat attach --cgroup /sys/fs/cgroup/web \\
          --framing http2 --ports 50051
      reuseport-tool autolowat status
      reuseport-tool autolowat detach --cgroup /sys/fs/cgroup/web
    """


@command.command("attach", short_help="Follow the frames of a cgroup's connections from now on.")
@_CGROUP
@click.option("--framing", required=True, metavar="SPEC", help="rpc, thrift, kafka, postgres, dns, http2, or length:…")
@click.option("--ports", type=PORTS, default=(), help="Follow every connection on these ports.")
@click.option(
    "--engine",
    type=OneOf(Engine, none="auto"),
    default="auto",
    show_default=True,
    help="native needs a kernel with the hook, solo works on stock ones. auto: native, else solo.",
)
@pass_context
def attach(ctx: Context, folder: Path, framing: str, ports: tuple[int, ...], engine: Engine | None) -> None:
    """Follow the frames of connections that are made in the cgroup from now on.

    The other end needs nothing. The engine solo also attaches a program to the network devices that exist now: run
    attach again when there are new ones. Without --ports, an application opts each socket in:
    setsockopt(fd, 0xdeadbeef, 0x8badf00d, &(int){1}, 4). docs/autolowat.md has an example of each framing.

    \b
    Examples:
      reuseport-tool autolowat attach --cgroup /sys/fs/cgroup/web \\
          --framing http2 --ports 50051
      reuseport-tool autolowat attach --cgroup /sys/fs/cgroup/rpc --framing rpc
      reuseport-tool autolowat attach --cgroup /sys/fs/cgroup/own \\
          --framing length:offset=4,width=4,order=big,includes=frame
    """
    show.result(autolowat.attach(folder, framing, ports, engine, ctx.bpffs), ctx.json)


@command.command("detach", short_help="Remove the programs, set SO_RCVLOWAT back to 1.")
@_CGROUP
@pass_context
def detach(ctx: Context, folder: Path) -> None:
    """Remove the programs and set SO_RCVLOWAT of every socket back to 1. Traffic may go on meanwhile.

    \b
    Examples:
      reuseport-tool autolowat detach --cgroup /sys/fs/cgroup/web
    """
    show.result(autolowat.detach(folder, ctx.bpffs), ctx.json)


@command.command("status", short_help="Show what it follows and has saved, and why it stopped.")
@pass_context
def status(ctx: Context) -> None:
    """Show where AutoLOWAT is attached, what it follows and has saved, and why it stopped following sockets.

    \b
    Examples:
      reuseport-tool autolowat status
    """
    show.result(autolowat.status(ctx.bpffs), ctx.json)
