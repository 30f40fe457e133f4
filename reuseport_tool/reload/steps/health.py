"""health: the new generation accepts, answers, and satisfies the operator."""

from __future__ import annotations

from reuseport_tool.errors import ToolError
from reuseport_tool.reload import sides, thresholds
from reuseport_tool.reload.health import AcceptGate
from reuseport_tool.reload.state import ReloadState, WayName
from reuseport_tool.reload.steps import quiet
from reuseport_tool.reload.ways.datagrams import OFFERS, OFFERS_MAX
from reuseport_tool.reload.world import World

_CLOSELY_S = 0.1  # under load a queue that a server takes from is shorter for a moment, until the next connection comes


def health(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when the new generation is not well."""
    ask_new(state, world, steered=False)
    return state


def ask_new(state: ReloadState, world: World, steered: bool) -> None:
    """Raises ToolError when the new generation does not accept, answer, or satisfy the command and counters."""
    plan = state.plan
    if plan.probe:
        _probe(state, world, steered)
    udp = {cookie for group in quiet.groups(state) for cookie in group.new}
    gate = AcceptGate(
        state.new_cookies, world.clock.now_s, lambda empty: sides.accepting(state, world, set(empty) - udp)
    )

    def passed() -> bool:
        return gate.passed({**sides.queues(state, world), **sides.unread(state, world, udp)})

    if not world.clock.wait(passed, plan.health_timeout_s, closely_s=_CLOSELY_S):
        raise ToolError(
            f"the new server does not accept: {gate.waiting()} after {plan.health_timeout_s:g} s",
            hint="allow more time with --health-timeout; --no-probe opens no connection",
        )
    if plan.health_url:
        world.traffic.ask(plan.health_timeout_s, steered)
    if plan.health_datagram is not None:
        for group in quiet.groups(state):
            if not group.dropped and not group.endpoint.is_shared:
                payload = bytes.fromhex(plan.health_datagram)
                world.datagrams.ask(group.endpoint, payload, plan.health_timeout_s)
    if plan.health_command:
        world.processes.run(plan.health_command, plan.health_timeout_s, "the health command")
    check_counters(state, world)


def _probe(state: ReloadState, world: World, steered: bool) -> None:
    for group in state.kept:
        if group.endpoint.is_shared:
            continue  # the probe would go to others, too
        if group.way is WayName.DATAGRAMS:
            world.datagrams.offer(group.endpoint, min(OFFERS * len(group.new), OFFERS_MAX))
        else:
            world.traffic.probe(group.endpoint, steered)


def check_counters(state: ReloadState, world: World) -> None:
    """Raises ToolError when a counter of --abort-on has grown too much."""
    if state.plan.abort_on:
        thresholds.check(state.plan.abort_on, state.mib_before, world.traffic.mib(), world.traffic.resets())
