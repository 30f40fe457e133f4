"""stop: the point of no return. As the old listeners close, the kernel moves what they hold."""

from __future__ import annotations

import contextlib
import dataclasses

from reuseport_tool.errors import ToolError
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.reload import sides, ways
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.steps import gap, quiet
from reuseport_tool.reload.survey import untouchable
from reuseport_tool.reload.world import World

_HALF_OPEN_S = 5.0  # how long to wait for half-open connections of the closed listeners
_ORPHANED_S = 1.0  # the owners have ended for so long, and a worker of theirs still holds a listener
_OVER_S = 2.0  # as in the step start: --run's command is over, and the server keeps what it has


def ask(state: ReloadState, world: World) -> ReloadState:
    """Tell the old side to stop.

    Raises as long as nothing was sent, so that everything can still be undone. The journal notes it before, so that no
    other run rolls back once the signal may have been sent, and again after: so it may be sent twice but never omitted.
    """
    plan = state.plan
    for group in state.kept if plan.run is None else ():
        if not sides.serving(state, world, group):  # hooks had their time since the last look
            raise ToolError(f"the new listeners on {group.endpoint} are gone")
    queued = sides.waiting(state, world, state.old_cookies)
    targets = _targets(state.owners, world) if plan.signals else ()
    state = save(state, world, step="stop", queued=queued)
    if plan.stop_command:
        state = _run_stop_command(plan.stop_command, state, world)
    for number, process in enumerate(targets):
        # Point of no return.
        with contextlib.suppress(Exception) if number else contextlib.nullcontext():
            world.processes.signal(process, plan.stop_signal)
    return save(state, world, stop_asked=plan.run is None)


def _targets(processes: tuple[ProcessIdentity, ...], world: World) -> tuple[ProcessIdentity, ...]:
    """Those that run and may be signalled."""
    tree = world.processes.tree()
    forbidden = untouchable(world, tree)
    return tuple(process for process in tree.running(processes) if process.pid not in forbidden)


def _run_stop_command(command: str, state: ReloadState, world: World) -> ReloadState:
    """What a command did before it failed nobody knows: the listeners tell."""
    try:
        world.processes.run(command, state.plan.stop_timeout_s, "the stop command")
    except ToolError as error:
        return warn(state, world, error.message)
    return state


def stop(state: ReloadState, world: World) -> ReloadState:
    """Wait for the end of the old listeners. Raises ToolError when the old side does not stop in time."""
    if state.plan.run is not None:
        state = _let_go(state, world)
    else:
        if not state.stop_asked:
            state = ask(state, world)
        if not world.clock.wait(_Stopping(state, world).done, state.plan.stop_timeout_s):
            raise _does_not_stop(state, world)
    state = save(state, world, stopped_at=world.clock.wall_s())
    world.clock.wait(lambda: not sides.half_open_behind(state, world), _HALF_OPEN_S)
    return state


class _Stopping:
    """The old side on its way out."""

    def __init__(self, state: ReloadState, world: World) -> None:
        self._state = state
        self._world = world
        self._orphaned_at: float | None = None

    def done(self) -> bool:
        """Whether no old listener is open. Workers that outlive their masters are told to stop, too."""
        if quiet.groups(self._state):
            self._world.datagrams.sockets()  # their drops and queues go with them
        if not sides.still_listening(self._state, self._world):
            return True
        if self._state.plan.signals and not any(map(self._world.processes.runs, self._state.owners)):
            now = self._world.clock.now_s()
            if self._orphaned_at is None:
                self._orphaned_at = now
            elif self._orphaned_at >= 0 and now - self._orphaned_at >= _ORPHANED_S:
                self._orphaned_at = -1.0  # once
                for process in _targets(self._orphans(), self._world):
                    self._world.processes.signal(process, self._state.plan.stop_signal)
        return False

    def _orphans(self) -> tuple[ProcessIdentity, ...]:
        """The processes of the old side that hold an old listener."""
        members = sides.members_of(self._state, self._world, self._state.old_cookies)
        holding = {holder.pid for member in members for holder in member.holders}
        return tuple(process for process in self._state.old_side if process.pid in holding)


def _does_not_stop(state: ReloadState, world: World) -> ToolError:
    if state.migrate_req_before == "0":
        warn(state, world, "net.ipv4.tcp_migrate_req stays on: the old listeners need it when they close")
    holders = sides.owners(state, world, state.old_cookies) or tuple(owner.pid for owner in state.owners)
    return ToolError(
        f"the old side (process {', '.join(map(str, holders))}) still listens "
        f"{state.plan.stop_timeout_s:g} s after it was told to stop; the new generation is working",
        hint="stop it by hand; when its listeners close, their connections move",
    )


def _let_go(state: ReloadState, world: World) -> ReloadState:
    """Close our copies once the server has closed its own, and keep what it did not close."""
    over_since: list[float] = []

    def settled() -> bool:
        """Whether the old listeners are let go, or the command is over and keeps them."""
        if state.started is None or not world.processes.runs(state.started):
            over_since.append(world.clock.now_s())
            if over_since[-1] - over_since[0] >= _OVER_S:
                return True
        return not sides.held_by_others(state, world)

    world.clock.wait(settled, state.plan.stop_timeout_s)
    state = save(state, world, queued=sides.waiting(state, world, state.old_cookies))
    state = gap.shrink(state, world)
    survivors = sides.held_by_others(state, world)
    for group in state.kept:
        kept = survivors.intersection(group.old)
        if kept:
            state = warn(state, world, f"{group.endpoint}: the server kept {len(kept)} of its listeners")
            state = save(state.with_group(_adopted(group, kept)), world)
    for group in state.kept:
        if survivors.intersection(group.new) and group.new_generation is not None:
            state = _fill_adopted(state, group, world)
        elif group.parked is not None and group.new_generation is None and group.old_generation is not None:
            world.pins.switch(group.endpoint, group.old_generation)
            world.datagrams.barrier()
    state = gap.give_on(state, world)
    world.listeners.let_go()
    return save(state, world, stop_asked=True)


def _adopted(group: GroupState, kept: frozenset[int]) -> GroupState:
    """A group whose old listeners that the server goes on using are new ones."""
    old = tuple(cookie for cookie in group.old if cookie not in kept)
    before = tuple(cookie for cookie in group.before if cookie not in kept)
    new = (*group.new, *(cookie for cookie in group.old if cookie in kept))
    return dataclasses.replace(group, old=old, before=before, new=new)


def _fill_adopted(state: ReloadState, group: GroupState, world: World) -> ReloadState:
    return state.with_group(ways.of(group).finish(state, group, world))
