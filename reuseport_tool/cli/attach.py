"""attach ENDPOINT"""

from __future__ import annotations

from pathlib import Path

import click

from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, examples, pass_context
from reuseport_tool.cli.types import DURATION, ENDPOINT
from reuseport_tool.errors import UsageError
from reuseport_tool.group import attach
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.kernel.flow_map import ENTRIES
from reuseport_tool.models import Endpoint, FlowMode, Policy


@click.command(
    "attach",
    short_help="Let a BPF program choose the listener of each new connection.",
    epilog=examples(
        "reuseport-tool attach 8080",
        "reuseport-tool attach 10.0.0.1:443 --policy round-robin",
        "reuseport-tool attach '[::]:80' --program my_policy.c",
        "reuseport-tool attach 8080 --follow",
        "reuseport-tool attach 8080 --repair",
        "reuseport-tool --json attach 8080 --follow | jq -c 'select(.event == \"registered\")'",
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
@click.option("--wait", "wait_s", type=DURATION, default="0", help="Wait for another run's lock.")
@click.option(
    "--flows",
    type=click.Choice([mode.value for mode in FlowMode]),
    help="What of UDP stays with its socket during a reload: nothing, or the datagrams of one address and port.",
)
@click.option(
    "--flow-entries",
    type=click.IntRange(1024, 1 << 24),
    metavar="N",
    help=f"How many flows can be recorded, 112 bytes each: twice as many as are alive.  [default: {ENTRIES}]",
)
@click.option("--repair", "repairing", is_flag=True, help="Take back a program of this tool whose pins are lost.")
@click.option("--follow", "following", is_flag=True, help="Stay, and register listeners as they come.")
@pass_context
def command(
    ctx: Context,
    endpoint: Endpoint,
    policy: str | None,
    program: Path | None,
    wait_s: float,
    repairing: bool,
    following: bool,
    flows: str | None,
    flow_entries: int | None,
) -> None:
    """Attach the program to every group that ENDPOINT means.

    The listeners that are there become generation 1. Connections that already wait in their queues
    are safe from then on, too. Run it again to register listeners that came later, or to change the
    policy; where nothing is to do it says so and exits with 0.

    With --flows address the program of a UDP group records which socket each address and port talks to, so that a
    reload leaves these flows with the old server until they end. Attach it well before the reload: flows that it has
    not seen are not known. 'flows' lists them.

    With --repair it finds the program that runs by its id, and makes anew the pins of it and of its maps: what was
    lost is back, and no connection notices. The program must be one of this tool, loaded by the same user.

    With --follow it stays in the foreground until SIGTERM or Ctrl-C, and prints a line for everything that happens.
    A listener that a process of the working generation's server opens (a respawned worker, say) is registered when
    it begins to listen; another is left to 'reload'. While a reload has the lock nothing is registered. It may
    begin before the server, and its end changes nothing: program and registrations stay.
    """
    if flow_entries and flows != FlowMode.ADDRESS:
        raise UsageError("--flow-entries needs --flows address")
    if following and flows:
        raise UsageError("--follow and --flows exclude each other", hint="attach with --flows first")
    if policy and program:
        raise UsageError("--policy and --program exclude each other")
    wanted = Policy(policy) if policy else None
    if repairing and (policy or program or following):
        raise UsageError("--repair keeps what runs", hint="change the policy afterwards")
    if repairing:
        from reuseport_tool.group import repair

        show.result(repair.repair(endpoint, ctx.bpffs, wait_s), ctx.json)
    elif following:
        from reuseport_tool.follow import run as follow

        follow.follow(endpoint, wanted, program, ctx.bpffs, lambda event: show.event(event, ctx.json))
    else:
        show.result(attach.attach(endpoint, wanted, program, ctx.bpffs, wait_s, _flows(flows, flow_entries)), ctx.json)


def _flows(mode: str | None, entries: int | None) -> FlowChoice | None:
    return None if mode is None else FlowChoice(mode=FlowMode(mode), entries=entries or ENTRIES)
