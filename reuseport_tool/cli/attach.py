"""attach ENDPOINT"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import wait
from reuseport_tool.cli.types import ENDPOINT, Number, OneOf
from reuseport_tool.errors import UsageError
from reuseport_tool.group import attach
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.kernel.flow_map import ENTRIES
from reuseport_tool.models import Endpoint, FlowMode, FollowEvent, Policy
from reuseport_tool.record import record


@record
class _Call:
    """What the command line says besides the endpoint."""

    policy: Policy | None
    program: Path | None
    wait_s: float
    repairing: bool
    following: bool
    flows: FlowMode | None
    flow_entries: int | None

    def check(self) -> None:
        """Raises UsageError for options that exclude each other."""
        if self.flow_entries and self.flows in (None, FlowMode.NONE):
            raise UsageError(
                "--flow-entries needs --flows address or --flows quic",
                hint="add one of them, or leave --flow-entries out",
            )
        if self.following and self.flows:
            raise UsageError("--follow and --flows exclude each other", hint="attach with --flows first")
        if self.policy and self.program:
            raise UsageError("--policy and --program exclude each other", hint="a program of your own is the policy")
        if self.repairing and (self.policy or self.program or self.following):
            raise UsageError("--repair keeps the running program", hint="change the policy afterwards")

    @property
    def flow_choice(self) -> FlowChoice | None:
        return None if self.flows is None else FlowChoice(mode=self.flows, entries=self.flow_entries or ENTRIES)


@click.command("attach")
@click.argument("endpoint", type=ENDPOINT)
@click.option(
    "--policy",
    type=OneOf(Policy),
    help="Which listener of the working generation gets a connection.  [default: hash]",
)
@click.option(
    "--program", type=click.Path(path_type=Path), metavar="FILE.c", help="A policy of your own, see bpf/reuseport.h."
)
@wait
@click.option(
    "--flows",
    type=OneOf(FlowMode),
    help="Which UDP datagrams stay with their socket during a reload: none, those of a known address and port, or also "
    "those of a known QUIC connection.",
)
@click.option(
    "--flow-entries",
    type=Number("N", 1024, 1 << 24),
    metavar="N",
    help="Room for this many flows, 112 bytes each (224 with QUIC); twice the number of live flows.  "
    f"[default: {ENTRIES}]",
)
@click.option("--repair", "repairing", is_flag=True, help="Restore lost pins of a running program of this tool.")
@click.option("--follow", "following", is_flag=True, help="Keep running, and register new listeners.")
@pass_context
def command(ctx: Context, /, endpoint: Endpoint, **options: Any) -> None:
    """Attach the program to every group that ENDPOINT means.

    The current listeners become generation 1. From then on, connections that already wait in their queues
    are safe as well. Run it again to register later listeners or to change the policy. If there is nothing
    to do, it says so and exits with 0.

    With --flows address, the program of a UDP group records which socket serves each client address and port. A
    reload then leaves these flows with the old server until they end. Attach well before the reload: the program
    knows only flows that it has seen. 'flows' lists them. With --flows quic, the program also learns the connection
    IDs of QUIC, so that a connection stays with its socket when the address of its client changes.

    With --repair, it finds the running program by its id and pins it and its maps again. Connections are not
    affected. The program must be this tool's and loaded by the same user.

    With --follow, it stays in the foreground until SIGTERM or Ctrl-C and prints a line for each event. It registers
    a listener that the server of the working generation opens (for example in a respawned worker) as soon as it
    listens. It leaves other listeners to 'reload', and registers nothing while a reload holds the lock. You can
    start it before the server. When it ends, the program and the registrations stay.

    \b
    Examples:
      reuseport-tool attach 8080
      reuseport-tool attach 10.0.0.1:443 --policy round-robin
      reuseport-tool attach '[::]:80' --program my_policy.c
      reuseport-tool attach 8080 --follow
      reuseport-tool attach 8080 --repair
      reuseport-tool --json attach 8080 --follow | jq -c .event
    """
    call = _Call(**options)
    call.check()
    if call.repairing:
        _repair(ctx, endpoint, call.wait_s)
    elif call.following:
        _follow(ctx, endpoint, call)
    else:
        done = attach.attach(endpoint, call.policy, call.program, ctx.bpffs, call.wait_s, call.flow_choice)
        show.result(done, ctx.json)


def _repair(ctx: Context, endpoint: Endpoint, wait_s: float) -> None:
    from reuseport_tool.group import repair

    show.result(repair.repair(endpoint, ctx.bpffs, wait_s), ctx.json)


def _follow(ctx: Context, endpoint: Endpoint, call: _Call) -> None:
    from reuseport_tool.cli.show import streams
    from reuseport_tool.follow import run as follow

    with streams.events() as stream:

        def tell(event: FollowEvent) -> None:
            show.event(dataclasses.replace(event, at=round(time.time(), 6)), ctx.json, stream)

        follow.follow(endpoint, call.policy, call.program, ctx.bpffs, tell)
