"""The gap of --run, in which nobody reads a UDP group: what comes is kept, and the new sockets get it later."""

from __future__ import annotations

import dataclasses

from reuseport_tool.errors import ToolError
from reuseport_tool.models import Counters
from reuseport_tool.reload import sides
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.steps import quiet
from reuseport_tool.reload.world import World

ROOM = 32 << 20
"""The receive buffer of an old socket meanwhile, bytes: some 40,000 small datagrams."""
_FULL = 64 << 10  # a socket that has so much to read gets no more from us for now
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


def park(state: ReloadState, world: World) -> ReloadState:
    """Before the command runs: datagrams wait in a socket of the tool's own, and the old server answers what it has.

    Whoever goes on after a killed run finds the command at work, or parks anew.
    """
    if state.plan.settle_s <= 0 or state.started is not None:
        return state
    held = sides.held_by_others(state, world)
    for group in quiet.groups(state):
        if not (group.dropped or group.endpoint.is_shared or group.joins) and held.intersection(group.old):
            state = _park(group, state, world)
    parked = [group for group in quiet.groups(state) if group.parked is not None]
    if parked:
        world.datagrams.barrier()
        state = quiet.answer_rest({cookie for group in parked for cookie in group.old}, state, world)
    return state


def _park(group: GroupState, state: ReloadState, world: World) -> ReloadState:
    like = next(member for member in sides.members_of(state, world, group.old) if member.holders)
    try:
        parked = world.gap.park(like)
    except ToolError as error:
        return warn(state, world, f"{error.message}: what the old server has not answered when it stops is lost")
    world.gap.resize([parked], [ROOM])
    pins = world.pins
    number = group.parked_generation or max((*pins.generations(group.endpoint), pins.working(group.endpoint))) + 1
    before = (*group.before, parked.cookie)
    changed = dataclasses.replace(group, before=before, parked=parked.cookie, parked_generation=number)
    state = save(state.with_group(changed), world)
    if number not in pins.generations(group.endpoint):
        pins.make(group.endpoint, number)
    pins.put(group.endpoint, number, [parked])
    pins.switch(group.endpoint, number)
    return state


def unpark(state: ReloadState, world: World) -> ReloadState:
    """Where the old server serves on: it gets what waited in the meantime."""
    held = sides.held_by_others(state, world)
    for group in quiet.groups(state):
        if group.parked is not None and held.intersection(group.old):
            world.datagrams.barrier()
            state = _give(group, [group.parked], group.old, state, world)
    return state


def hold_unread(state: ReloadState, world: World) -> None:
    """In a roll-back: what the new server does not read, stays when that ends."""
    if quiet.may_have_asked(state):
        cookies = {cookie for group in quiet.groups(state) for cookie in group.new}
        left = {cookie for cookie, size in sides.unread(state, world, cookies).items() if size}
        world.listeners.keep(sides.members_of(state, world, left))


def give_back(state: ReloadState, world: World) -> ReloadState:
    """In a roll-back: the old server gets what hold_unread() holds."""
    try:
        for group in quiet.groups(state) if quiet.may_have_asked(state) else ():
            state = _give(group, [*group.new], group.old, state, world)
    finally:
        world.listeners.let_go()
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
    """Send what waits once more, now that the program gives it to the new sockets."""
    survivors = sides.held_by_others(state, world)
    for group in quiet.groups(state):
        parked = () if group.parked is None else (group.parked,)
        left = [cookie for cookie in (*group.old, *parked) if cookie not in survivors]
        if left and group.new and not group.dropped:
            state = _give(group, left, group.new, state, world)
    if quiet.groups(state):
        world.datagrams.sockets()  # what is left in them goes with the copies
    return state


def _give(
    group: GroupState, left: list[int], readers: tuple[int, ...], state: ReloadState, world: World
) -> ReloadState:
    """By and by: a server that is busy would let its receive buffers overflow."""
    before = world.pins.counters(group.endpoint)
    taken = sent = 0

    def done() -> bool:
        nonlocal taken, sent
        if any(size > _FULL for size in sides.unread(state, world, readers).values()):
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
        state = warn(state, world, f"{group.endpoint}: datagrams are left unsent after {timeout_s:g} s")
    given = _arrived(group, before, sent, world)
    if given < taken:
        text = f"{group.endpoint}: {taken - given} of {taken} datagrams that waited for a server are lost"
        state = warn(state, world, text)
    changed = dataclasses.replace(group, given=group.given + given, not_given=group.not_given + taken - given)
    return save(state.with_group(changed), world)


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
