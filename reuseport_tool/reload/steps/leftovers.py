"""leftovers: what the old side has accepted lives on."""

from __future__ import annotations

from collections.abc import Collection

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import Leftovers
from reuseport_tool.reload import sides
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import ReloadState, WayName
from reuseport_tool.reload.world import OldConnections, World

_TELL_S = 5.0


def leftovers(state: ReloadState, world: World) -> ReloadState:
    """Wait for the accepted connections of the old side, and end them where that was asked for."""
    side = _left(state, world)
    if not side:
        nothing = Leftovers(
            connections=0,
            ended=0,
            left=0,
            waited_s=0.0,
            older_than_s=_older_s(state, world),
            idle_min_s=None,
            idle_max_s=None,
        )
        return save(state, world, leftovers=nothing)
    groups = [group.endpoint for group in state.groups if group.way is not WayName.DATAGRAMS]
    try:
        found = _settle(world.traffic.old_connections(groups, side), state, world)
    except (Unsupported, MissingCapability) as error:
        return warn(state, world, f"cannot see the accepted connections of the old side: {error.message}")
    return save(state, world, leftovers=found)


def _left(state: ReloadState, world: World) -> Collection[ProcessIdentity]:
    """The old side's processes that run and serve none of the new listeners."""
    serving = {holder.pid for member in sides.members_of(state, world, state.new_cookies) for holder in member.holders}
    return [process for process in state.old_side if process.pid not in serving and world.processes.runs(process)]


def _older_s(state: ReloadState, world: World) -> float:
    return round(world.clock.wall_s() - (state.stopped_at or world.clock.wall_s()), 3)


def _settle(connections: OldConnections, state: ReloadState, world: World) -> Leftovers:
    """An interrupt ends the wait, and not the reload."""
    begun = told = world.clock.now_s()
    timeout_s = state.plan.leftovers_timeout_s
    first = left = connections.count()

    def done() -> bool:
        nonlocal left, told
        left = connections.count()
        sides.queues(state, world)  # for the log: nothing else looks at the new listeners in this wait
        now = world.clock.now_s()
        if left and (now - told >= _TELL_S or told == begun):
            told = now
            world.tell.note(f"{_described(left, connections)}; waiting up to {timeout_s - (now - begun):.0f} s more")
        return not left or world.clock.interrupted()

    if left and timeout_s > 0:
        world.clock.wait(done, timeout_s)
    ended = connections.end() if left and state.plan.kill_leftovers else 0
    low, high = connections.idle_s()
    return Leftovers(
        connections=first,
        ended=ended,
        left=left - ended,
        waited_s=round(world.clock.now_s() - begun, 3),
        older_than_s=_older_s(state, world),
        idle_min_s=low,
        idle_max_s=high,
    )


def _described(count: int, connections: OldConnections) -> str:
    low, high = connections.idle_s()
    idle = "" if low is None else f", idle for {low:.1f} to {high:.1f} s"
    return f"the old side still holds {count} accepted connection{'' if count == 1 else 's'}{idle}"
