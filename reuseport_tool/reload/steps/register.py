"""register: the new generation is complete, and nothing goes to it yet."""

from __future__ import annotations

from reuseport_tool.reload import ways
from reuseport_tool.reload.saving import save
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def register(state: ReloadState, world: World) -> ReloadState:
    """The number of a generation is written down before it is made, so that another run fills the same one."""
    state = save(state.with_groups(ways.of(group).number(group, world) for group in state.kept), world)
    for group in state.kept:
        ways.of(group).fill(state, group, world)
    return state
