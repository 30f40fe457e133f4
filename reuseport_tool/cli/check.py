"""check hot-reload|udp-reload|rpc-framing"""

from __future__ import annotations

import click

from reuseport_tool.check import hot_reload as check_hot_reload
from reuseport_tool.check import rpc_framing as check_rpc_framing
from reuseport_tool.check import udp_reload as check_udp_reload
from reuseport_tool.cli import show
from reuseport_tool.cli.compat import VerbGroup
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import count, members
from reuseport_tool.cli.types import OneOf
from reuseport_tool.models import CheckedWay, Engine


@click.group("check", cls=VerbGroup)
def command() -> None:
    """Prove on the running kernel that it works. Groups in use are not touched.

    \b
    Examples:
      reuseport-tool check hot-reload
      reuseport-tool --json check udp-reload | jq .ok
    """


@command.command("hot-reload", short_help="What a reload of a TCP server loses, in six ways.")
@count("--connections", 4, "Connections of each case.", most=64)
@members("--strategy", "ways", CheckedWay, "Only this way to reload. Repeatable.  [default: all]")
@pass_context
def hot_reload(ctx: Context, connections: int, ways: tuple[CheckedWay, ...]) -> int:
    """Reload a server in six ways, and count what happens to its waiting connections.

    Each case uses crafted packets to bring connections into one of the states in which a listener holds them.
    Then it reloads in one of the ways of --strategy; bpf-migrate is what this tool does. The counts of the clients, the
    kernel and the program must agree, and the connections that a server inherits must wake it from epoll_wait.

    Exits with 0 only if every case came out as expected.

    \b
    Examples:
      reuseport-tool check hot-reload
      reuseport-tool check hot-reload --strategy bpf-migrate --strategy sysctl
      reuseport-tool --json check hot-reload --connections 16
    """
    with show.progress("cases") as progress:
        report = check_hot_reload.check(ctx.bpffs, connections, ways or tuple(CheckedWay), progress)
    show.result(report, ctx.json)
    return 0 if report.ok else 1


@command.command("udp-reload", short_help="What a reload of a UDP server loses.")
@pass_context
def udp_reload(ctx: Context) -> int:
    """Reload UDP servers of several kinds under load, and count the datagrams that get no answer.

    Each case runs this tool as an operator does, in a network namespace of its own. The arm "plain" restarts the
    server without it.

    Exits with 0 only if every case came out as expected.

    \b
    Examples:
      reuseport-tool check udp-reload
      reuseport-tool --json check udp-reload
    """
    with show.progress("cases") as progress:
        report = check_udp_reload.check(ctx.bpffs, progress)
    show.result(report, ctx.json)
    return 0 if report.ok else 1


@command.command("rpc-framing", short_help="When AutoLOWAT wakes a reader.")
@click.option(
    "--engine", type=OneOf(Engine, none="auto"), default="auto", show_default=True, help="As for autolowat attach."
)
@pass_context
def rpc_framing(ctx: Context, engine: Engine | None) -> int:
    """Send and read frames in many ways, and check when the reader is woken.

    Each piece of a frame is sent as a segment of its own. After each segment, SO_RCVLOWAT must have the right value,
    and epoll must report the socket exactly when a frame is there.

    Exits with 0 only if every case came out as expected, with 4 where the kernel has no such engine.

    \b
    Examples:
      reuseport-tool check rpc-framing
      reuseport-tool check rpc-framing --engine solo
    """
    with show.progress("cases") as progress:
        report = check_rpc_framing.check(engine, progress)
    show.result(report, ctx.json)
    return 0 if report.ok else 1
