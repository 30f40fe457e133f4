"""compare: nothing is moved to a listener that would treat the connections differently."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from reuseport_tool.errors import Closed, ToolError
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.reload import preflight, sides
from reuseport_tool.reload.preflight import Differences
from reuseport_tool.reload.saving import warn
from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.world import World


def compare(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError for an unsafe difference, which --force makes a warning."""
    for group in state.kept:
        if not group.new:
            continue
        found = _differences(state, group, world)
        for text in found.harmless:
            state = warn(state, world, f"{group.endpoint}: {text}")
        if found.unsafe and not state.plan.force:
            raise ToolError(
                f"unsafe to move connections on {group.endpoint}: {'; '.join(found.unsafe)}",
                hint="give the new server the same options, or use --force",
            )
        for text in found.unsafe:
            state = warn(state, world, f"{group.endpoint}: {text} (--force)")
    return state


def _differences(state: ReloadState, group: GroupState, world: World) -> Differences:
    new = sides.members_of(state, world, group.new)
    if not new:
        raise ToolError(f"the new listeners on {group.endpoint} are gone")
    if group.way is WayName.DATAGRAMS:  # datagrams are not moved
        return Differences(unsafe=(), harmless=())
    old = sides.members_of(state, world, group.old)
    queued = sum(member.socket.accept_queue or 0 for member in old)
    capacity = preflight.compare_capacity(queued, [member.socket.backlog or 0 for member in new])
    before, after = _options(old, world), _options(new, world)
    if before is None or after is None:
        return capacity
    options = preflight.compare(before, after)
    return Differences(unsafe=options.unsafe + capacity.unsafe, harmless=options.harmless + capacity.harmless)


def _options(members: Sequence[Member], world: World) -> ListenerOptions | None:
    """Of the first that is still open."""
    for member in members:
        with contextlib.suppress(Closed):
            return world.listeners.options(member)
    return None
