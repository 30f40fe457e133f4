"""confirm: the last look before the point of no return."""

from __future__ import annotations

from reuseport_tool.errors import ToolError
from reuseport_tool.reload import sides, survey, ways
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def confirm(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when the new side is gone, another program decides, or somebody keeps the old listeners open."""
    state = sides.new_side(sides.find_new(state, world), world)
    for group in state.kept:
        if (group.new or state.plan.run is None) and not sides.serving(state, world, group):
            raise ToolError(f"the new listeners on {group.endpoint} are gone")
        ways.of(group).check(group, world)
    state = _old_side(state, world)
    return _check_holders(state, world) if state.plan.signals else state


def _old_side(state: ReloadState, world: World) -> ReloadState:
    """The old processes, those that descend from them, and those that hold an old listener, as they are now."""
    tree = world.processes.tree()
    holding = {holder.pid for member in sides.members_of(state, world, state.old_cookies) for holder in member.holders}
    below = tree.below({owner.pid for owner in tree.running(state.owners)})
    mine = sides.new_processes(state, world, tree) | {world.processes.own_pid()}
    now = tree.identities((holding | below) - mine)
    return save(state, world, old_side=tuple(dict.fromkeys((*tree.running(state.old_side), *now))))


def _check_holders(state: ReloadState, world: World) -> ReloadState:
    tree = world.processes.tree()
    members = sides.members_of(state, world, state.old_cookies)
    owners = {owner.pid for owner in tree.running(state.owners)}
    stay = survey.staying(members, tree, owners, survey.untouchable(world, tree), world)
    refusal = survey.refusal_of(stay)
    if refusal is None:
        return state
    if not state.plan.force:
        raise refusal
    return warn(state, world, f"{refusal.message} (--force)")
