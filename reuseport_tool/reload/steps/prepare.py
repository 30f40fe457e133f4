"""prepare: from here connections that wait already are safe."""

from __future__ import annotations

from reuseport_tool.reload import sides, ways
from reuseport_tool.reload.saving import save
from reuseport_tool.reload.state import ReloadState, WayName
from reuseport_tool.reload.steps import gap
from reuseport_tool.reload.world import World


def prepare(state: ReloadState, world: World) -> ReloadState:
    """Raises what attaching a program raises, Conflict for a foreign one."""
    for group in state.groups:
        state = save(state.with_group(ways.of(group).prepare(state, group, world)), world)
    if any(group.way is WayName.SYSCTL for group in state.groups):
        if state.migrate_req_before is None:
            state = save(state, world, migrate_req_before=world.traffic.migrate_req())
        world.traffic.set_migrate_req("1")
    if state.plan.run is not None:
        # Held until the new generation works: whatever the command closes stays open that long.
        world.listeners.keep(sides.members_of(state, world, state.old_cookies))
        state = gap.make_room(state, world)
        state = gap.park(state, world)
    return state
