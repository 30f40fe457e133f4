"""A UDP group: as with ProgramWay, but the kernel moves nothing, so the old sockets are emptied before they close."""

from __future__ import annotations

import dataclasses

from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.models import FlowMode
from reuseport_tool.reload import sides
from reuseport_tool.reload.health import AcceptGate
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.ways.program import ProgramWay
from reuseport_tool.reload.world import World

OFFERS, OFFERS_MAX = 4, 256
"""Empty datagrams for each new socket, so that every one gets some as a rule."""


class DatagramWay(ProgramWay):
    """See the protocol Way."""

    def prepare(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Attach before the new side starts: its bind() alone deals the datagrams of all out anew."""
        if state.plan.run is not None:
            world.gap.check(group.endpoint)
        is_first = group.old_generation is None
        group = super().prepare(state, group, world)
        if not is_first:
            return group
        if group.flows is not FlowMode.NONE:
            self._check_flows(state, group)
            if not group.recorded_before:
                self._record(state, group, world)
        return dataclasses.replace(group, drops_before=_drops(group, world))

    def _check_flows(self, state: ReloadState, group: GroupState) -> None:
        if group.joins:
            raise Conflict(
                f"{group.endpoint}: other instances serve beside the old one, and their flows cannot be told apart",
                hint="use --flows none, or reload all instances together",
            )
        if not group.recorded_before and state.plan.new_pid is not None:
            raise Conflict(
                f"{group.endpoint} has not recorded its flows, and the new server has bound already",
                hint=f"attach {group.endpoint} --flows {group.flows} before the new server starts",
            )

    def _record(self, state: ReloadState, group: GroupState, world: World) -> None:
        seconds = state.plan.flow_timeout_s
        world.tell.note(f"{group.endpoint}: recording flows for {seconds:g} s, because none were recorded before")
        world.clock.wait(lambda: False, seconds)

    def undo(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Flows that began on the new server end with it: the old one gets their datagrams from here on."""
        super().undo(state, group, world)
        has_begun = bool(state.plan.canary or group.counters_at_switch)
        if group.flows is FlowMode.NONE or not has_begun or world.pins.counters(group.endpoint) is None:
            return
        begun = [flow for flow in world.datagrams.flows(group.endpoint) if flow.is_of(group.new_generation)]
        ended = sum(flow.idle_s < state.plan.flow_timeout_s for flow in begun)
        world.pins.take_out(group.endpoint, group.new)
        if ended:
            world.tell.warn(f"{ended} flows on {group.endpoint} began on the new server, and end with it")

    def fill(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Raises Conflict when the kernel has put the new sockets into another group, and flows are to be kept."""
        super().fill(state, group, world)
        infos = world.datagrams.sockets()
        parts = {infos[cookie].group for cookie in (*group.old, *group.new) if cookie in infos}
        if len(parts) < 2:
            return
        split = f"{group.endpoint}: the kernel keeps the new sockets in another group, because an old one connected"
        if group.flows is not FlowMode.NONE:
            raise Conflict(f"{split}: they already get every datagram", hint="bind the server to all addresses")
        world.tell.warn(f"{split}; they get every datagram since they were bound")
        world.pins.attach_again(group.endpoint)

    def be_ready(self, state: ReloadState, group: GroupState, world: World) -> None:
        """What a new socket does not read is lost, so that it must show that it reads before it gets anything."""
        if not self.is_switched(group, world) and not state.plan.canary and not group.endpoint.is_shared:
            _be_ready(state, group, world)

    def switch(self, state: ReloadState, group: GroupState, world: World) -> float | None:
        """Commit point, and no datagram is on its way to an old socket afterwards, but those of kept flows."""
        took_us = super().switch(state, group, world)
        world.datagrams.barrier()
        return took_us


def _be_ready(state: ReloadState, group: GroupState, world: World) -> None:
    """Raises ToolError when a new socket does not read, or does not answer --health-datagram."""
    plan = state.plan
    if group.new_generation is None or not (plan.probe or plan.health_datagram is not None):
        return
    world.pins.share(group.endpoint, group.new_generation, 0.0)
    if plan.probe:
        world.datagrams.offer(group.endpoint, min(OFFERS * len(group.new), OFFERS_MAX))
        gate = AcceptGate(set(group.new), world.clock.now_s)
        if not world.clock.wait(lambda: gate.passed(sides.unread(state, world, group.new)), plan.health_timeout_s):
            raise ToolError(
                f"the new server does not read its sockets on {group.endpoint}: {gate.waiting()} "
                f"after {plan.health_timeout_s:g} s",
                hint="allow more time with --health-timeout; --no-probe sends no datagram",
            )
    if plan.health_datagram is not None:
        payload = bytes.fromhex(plan.health_datagram)
        world.datagrams.ask(group.endpoint, payload, plan.health_timeout_s)


def _drops(group: GroupState, world: World) -> int:
    infos = world.datagrams.sockets()
    return sum(infos[cookie].drops for cookie in group.old if cookie in infos)
