"""confirm: the last look before the point of no return."""

from __future__ import annotations

from collections.abc import Collection

from reuseport_tool.errors import ToolError
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.reload import sides, survey, ways
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def confirm(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when the new side is gone, another program decides, or somebody keeps the old listeners open."""
    state = sides.find_new(state, world)
    for group in state.kept:
        if (group.new or state.plan.run is None) and not sides.serving(state, world, group):
            raise ToolError(f"the new listeners on {group.endpoint} are gone")
        ways.of(group).check(group, world)
    tree = world.processes.tree()
    members = sides.members_of(state, world, state.old_cookies)
    state = _old_side(sides.new_side(state, world, tree), world, tree, members)
    return _check_holders(state, world, tree, members) if state.plan.signals else state


def _old_side(state: ReloadState, world: World, tree: ProcessTree, members: Collection[Member]) -> ReloadState:
    """The old processes, those that descend from them, and those that hold an old listener, as they are now."""
    holding = {holder.pid for member in members for holder in member.holders}
    below = tree.below({owner.pid for owner in tree.running(state.owners)})
    mine = sides.new_processes(state, world, tree) | {world.processes.own_pid()}
    now = tree.identities((holding | below) - mine)
    return save(state, world, old_side=tuple(dict.fromkeys((*tree.running(state.old_side), *now))))


def _check_holders(state: ReloadState, world: World, tree: ProcessTree, members: Collection[Member]) -> ReloadState:
    owners = {owner.pid for owner in tree.running(state.owners)}
    stay = survey.staying(members, tree, owners, survey.untouchable(world, tree), world)
    refusal = survey.refusal_of(stay)
    if refusal is None:
        return state
    if not state.plan.force:
        raise refusal
    return warn(state, world, f"{refusal.message} (--force)")
