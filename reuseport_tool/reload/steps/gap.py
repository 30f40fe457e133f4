"""The gap of --run, in which nobody reads a UDP group: the old sockets keep what comes, the new ones get it later."""

from __future__ import annotations

import dataclasses

from reuseport_tool.models import Counters
from reuseport_tool.reload import sides
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.steps import quiet
from reuseport_tool.reload.world import World

ROOM = 32 << 20
"""The receive buffer of an old socket meanwhile, bytes: some 40,000 small datagrams."""
_FULL = 64 << 10  # a new socket that has so much to read gets no more from us for now
_ARRIVED_S = 2.0


def make_room(state: ReloadState, world: World) -> ReloadState:
    """Let the copies of the old sockets hold more. What they held before is written down first."""
    for group in quiet.groups(state):
        members = sides.members_of(state, world, group.old)
        if not group.buffers and len(members) == len(group.old):
            by_cookie = dict(zip([member.cookie for member in members], world.gap.buffers(members), strict=True))
            group = dataclasses.replace(group, buffers=tuple(by_cookie[cookie] for cookie in group.old))
            state = save(state.with_group(group), world)
        if group.buffers:
            world.gap.resize(members, [ROOM] * len(members))
    return state


def shrink(state: ReloadState, world: World) -> ReloadState:
    """Give the old sockets that a server still has the receive buffers that they had before."""
    if state.plan.run is None or not quiet.groups(state):
        return state
    world.datagrams.sockets()  # in a roll-back, what the others hold goes with the copies
    for group in quiet.groups(state):
        sizes = dict(zip(group.old, group.buffers, strict=False))
        members = [member for member in sides.members_of(state, world, sizes.keys()) if member.holders]
        world.gap.resize(members, [sizes[member.cookie] for member in members])
        state = state.with_group(dataclasses.replace(group, buffers=()))
    return save(state, world)


def give_on(state: ReloadState, world: World) -> ReloadState:
    """Send what waits in the old sockets once more, now that the program gives it to the new ones."""
    survivors = sides.held_by_others(state, world)
    for group in quiet.groups(state):
        left = [cookie for cookie in group.old if cookie not in survivors]
        if left and group.new and not group.dropped:
            state = _give(group, left, state, world)
    if quiet.groups(state):
        world.datagrams.sockets()  # what is left in them goes with the copies
    return state


def _give(group: GroupState, left: list[int], state: ReloadState, world: World) -> ReloadState:
    """By and by: a new server that is busy would let its receive buffers overflow."""
    before = world.pins.counters(group.endpoint)
    taken = sent = 0

    def done() -> bool:
        nonlocal taken, sent
        if any(size > _FULL for size in sides.unread(state, world, group.new).values()):
            return False
        while left:
            more, of_them_sent = world.gap.give(group.endpoint, left[0])
            taken, sent = taken + more, sent + of_them_sent
            if more:
                return False
            left.pop(0)
        return True

    timeout_s = state.plan.queue_drain_timeout_s
    if not world.clock.wait(done, timeout_s):
        state = warn(state, world, f"{group.endpoint}: datagrams are left in the old sockets after {timeout_s:g} s")
    given = _arrived(group, before, sent, world)
    if given < taken:
        text = f"{group.endpoint}: {taken - given} of {taken} datagrams that came while no server ran are lost"
        state = warn(state, world, text)
    return save(state.with_group(dataclasses.replace(group, given=given, not_given=taken - given)), world)


def _arrived(group: GroupState, before: Counters | None, sent: int, world: World) -> int:
    """How many of those that were sent reached the program, at most: what clients send counts as well."""
    seen = 0

    def all_have() -> bool:
        nonlocal seen
        now = world.pins.counters(group.endpoint)
        counted = now.since(before) if now is not None and before is not None else None
        seen = sent if counted is None else counted.selected + counted.fallback
        return seen >= sent

    world.clock.wait(all_have, _ARRIVED_S)
    return min(sent, seen)
