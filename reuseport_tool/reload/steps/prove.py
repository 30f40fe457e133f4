"""prove: the new side serves, and everything that the reload needed is tidied."""

from __future__ import annotations

from reuseport_tool.errors import ToolError
from reuseport_tool.reload import sides, ways
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def prove(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when nobody serves a group, or another program decides about its connections."""
    state = restore_sysctl(state, world)
    state = save(sides.find_new(state, world), world)
    for group in state.kept:
        state = state.with_group(ways.of(group).finish(state, group, world))
    state = _warn_of_others(_warn_of_fewer(save(state, world), world), world)
    _check_end(state, world)
    return state


def restore_sysctl(state: ReloadState, world: World) -> ReloadState:
    """Put net.ipv4.tcp_migrate_req back, unless connections still need it."""
    if state.migrate_req_before in (None, "1"):
        return state
    if sides.half_open_behind(state, world) != 0:
        text = "net.ipv4.tcp_migrate_req stays on: half-open connections of the old side may still need it"
        return warn(state, world, text)
    assert state.migrate_req_before is not None
    if world.traffic.migrate_req() != state.migrate_req_before:  # where it could not be set there is no need
        world.traffic.set_migrate_req(state.migrate_req_before)
    return save(state, world, migrate_req_before=None)


def _warn_of_fewer(state: ReloadState, world: World) -> ReloadState:
    """A worker that listens after the end is registered by nobody, and gets nothing."""
    for group in state.kept if state.plan.listeners is None else ():
        if 0 < len(group.new) < len(group.old):
            found = f"{len(group.new)} listener{'' if len(group.new) == 1 else 's'}"
            text = (
                f"{group.endpoint}: the new server has {found}, the old one had {len(group.old)}; those that it opens"
            )
            text += " later get no connections until 'attach' or a follower registers them (--listeners N waits for N)"
            state = warn(state, world, text)
    return state


def _warn_of_others(state: ReloadState, world: World) -> ReloadState:
    """Name the listeners that came meanwhile and are not the new side's."""
    known = {cookie for group in state.groups for cookie in (*group.old, *group.before, *group.new)}
    for group in state.groups:
        entries = [
            entry
            for entry in sides.listening(state, world, [group.endpoint])[group.endpoint]
            if entry.cookie not in known
        ]
        members = world.listeners.with_holders(entries, None)
        pids = sorted({holder.pid for member in members for holder in member.holders})
        if pids:
            named = ", ".join(f"{pid} ({world.processes.command(pid)})" for pid in pids)
            state = warn(
                state,
                world,
                f"{group.endpoint}: process {named} has opened {len(entries)} listeners and is not the new "
                "server; it may be a restarted old version. 'status' shows whether its listeners get connections",
            )
    return state


def _check_end(state: ReloadState, world: World) -> None:
    for group in state.kept:
        if not sides.serving(state, world, group):
            raise ToolError(
                f"the new server does not listen on {group.endpoint} any more, and the old one was stopped",
                hint=f"see {state.output or 'its output'}, and start a server there",
            )
    for group in state.kept:
        ways.of(group).check(group, world)
