"""The way back: the old side works on, and all that this reload started ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

from reuseport_tool.errors import Interrupted, RolledBack, ToolError, want_of_room
from reuseport_tool.models import Step, Strategy
from reuseport_tool.reload import outcome, report, sides, ways
from reuseport_tool.reload.saving import save, since_begin_s
from reuseport_tool.reload.state import ROLL_BACK, GroupState, ReloadState
from reuseport_tool.reload.steps import gap, quiet
from reuseport_tool.reload.steps.prove import restore_sysctl
from reuseport_tool.reload.survey import untouchable
from reuseport_tool.reload.world import World

_HURRY_S = 2.0  # then the whole tree is told to end, and not its roots only
_KILL_AFTER_S = 10.0
_KILLED_S = 5.0


def described(error: BaseException) -> str:
    """An exception in a sentence."""
    if isinstance(error, ToolError):
        return error.message
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    no_room = want_of_room(error)
    return no_room.message if no_room else f"unexpected {type(error).__name__}: {error}"


def trace(error: BaseException) -> str:
    """The traceback of an exception that nobody expected."""
    import traceback  # of most runs there is none to tell

    return "".join(traceback.format_exception(error))


def _alive(state: ReloadState, world: World, group: GroupState) -> tuple[bool, bool]:
    """Whether a group has an old listener or another instance's that serves, and whether it has a new one."""
    present = {entry.cookie for entry in sides.listening(state, world, [group.endpoint])[group.endpoint]}
    old = present.intersection((*group.old, *group.others))
    if state.plan.run is not None:
        old &= sides.held_by_others(state, world) | set(group.others)
    return bool(old), bool(present.intersection(group.new))


def must_go_forward(state: ReloadState, world: World) -> bool:
    """Whether the new side is the only one that serves a group. Where that cannot be seen: no."""
    with contextlib.suppress(Exception):
        found = sides.find_new(state, world)
        return any(new and not old for old, new in (_alive(found, world, group) for group in found.kept))
    return False


def old_is_gone(state: ReloadState, world: World) -> bool:
    """Whether some group has neither an old listener nor another instance's."""
    return not all(_alive(state, world, group)[0] for group in state.groups)


def old_serves(state: ReloadState, world: World) -> bool:
    """Whether an old listener is still open. Where that cannot be seen: no."""
    with contextlib.suppress(Exception):
        return bool(sides.still_listening(state, world))
    return False


def old_serves_alone(state: ReloadState, world: World) -> bool:
    """Whether the old side is the only one that serves a group, so that it must not be stopped."""
    with contextlib.suppress(Exception):
        return any(old and not new for old, new in (_alive(state, world, group) for group in state.kept))
    return True


def roll_back(error: BaseException, state: ReloadState, world: World) -> NoReturn:
    """Undo everything, then raise what to tell: the plain error if nothing had begun, or how the roll-back ended.

    Raises:
        RolledBack, Interrupted: the old side works as before.
        ToolError: it has ended as well.
    """
    begun = state.started is not None or bool(state.new_cookies)
    state, problems = undo(state, world)
    if isinstance(error, ToolError) and not begun and not problems:
        raise error
    gone, nobody = _who_serves(state, world)
    text = f"{described(error)}; rolled back, the old side is working as before"
    if gone:
        text = f"{described(error)}; the old side has ended, too"
        text += f", and nobody serves {', '.join(nobody)}" if nobody else ", but another server listens"
    done = None
    with contextlib.suppress(Exception):
        done = report.made(state, world, "failed" if gone else "rolled-back")
    text = "; ".join((text, *problems, *report.losses(done)))
    if done is not None:
        outcome.keep(done, state, world, text)
    if gone:
        hint = "start a server there" if nobody else "'status' shows which"
        raise ToolError(text, hint=hint, log=_log(error), report=done) from error
    if isinstance(error, KeyboardInterrupt):
        raise Interrupted(text, report=done) from error
    if isinstance(error, ToolError):
        raise RolledBack(text, hint=error.hint or _where_to_look(state), log=error.log, report=done) from error
    no_room = want_of_room(error)
    hint = (no_room and no_room.hint) or "--verbose shows where"
    raise RolledBack(text, hint=hint, log=trace(error), report=done) from error


def _who_serves(state: ReloadState, world: World) -> tuple[bool, list[str]]:
    """Whether the old side is gone, and the groups in which nobody listens any more. Where that cannot be seen: no."""
    with contextlib.suppress(Exception):
        present = sides.listening(state, world)
        return old_is_gone(state, world), [str(group) for group, entries in present.items() if not entries]
    return False, []


def _log(error: BaseException) -> str | None:
    return error.log if isinstance(error, ToolError) else trace(error)


def _where_to_look(state: ReloadState) -> str | None:
    """For a new server that was not well, nobody says why but itself."""
    if state.started is None:
        return None
    return f"the new server's output is {f'in {state.output}' if state.output else 'above'}"


def undo(state: ReloadState, world: World) -> tuple[ReloadState, list[str]]:
    """Undo each part, even if others fail. Also returns what could not be undone."""
    problems: list[str] = []
    begin_s, begun_s = since_begin_s(state, world), world.clock.now_s()
    world.tell.begin(ROLL_BACK)
    with _tried(problems, "saving the state"):
        state = save(state, world, step=ROLL_BACK)
    with _tried(problems, "looking for the new side"):
        state = sides.new_side(sides.find_new(state, world), world)
    for group in state.groups:
        with _tried(problems, f"switching {group.endpoint} back"):
            ways.of(group).undo(state, group, world)
    with _tried(problems, "giving on what waited for a server"):
        state = gap.unpark(state, world)
    with _tried(problems, "giving the old sockets back their receive buffers"):
        state = gap.shrink(state, world)
    with _tried(problems, "letting go of the old listeners"):
        world.listeners.let_go()
    with _tried(problems, "ending the new side"):
        problems += _end_new_side(state, world)
    with _tried(problems, "giving on what the new side has not read"):
        state = gap.give_back(state, world)
    with _tried(problems, "reading the counters"):
        state = save(state, world, migrated=report.migrated(state, world))
    for group in state.groups:
        with _tried(problems, f"tidying {group.endpoint}"):
            ways.of(group).forget(group, world)
    with _tried(problems, "restoring net.ipv4.tcp_migrate_req"):
        state = restore_sysctl(state, world)
    step = Step(
        name=ROLL_BACK,
        begin_s=begin_s,
        duration_s=round(world.clock.now_s() - begun_s, 4),
        outcome="failed" if problems else "done",
        detail="; ".join(problems),
    )
    world.tell.end(step)
    with _tried(problems, "removing the journal"):
        world.journal.remove()
    return state.with_step(step), problems


@contextlib.contextmanager
def _tried(problems: list[str], doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        problems.append(f"{doing} failed: {described(error)}")


def _end_new_side(state: ReloadState, world: World) -> list[str]:
    """End the processes that this reload started, and no others. What they hold moves back as their listeners close."""
    if state.strategy is Strategy.DRAIN and state.new_cookies:
        world.clock.wait(
            lambda: not sides.waiting(state, world, state.new_cookies).accept_queue, state.plan.health_timeout_s
        )
    if state.given is not None:
        return []
    quiet.answer_all(state, world)
    gap.hold_unread(state, world)
    ending = _Ending(state, world)
    if not world.clock.wait(ending.done, _KILL_AFTER_S):
        ending.kill()
        world.clock.wait(ending.done, _KILLED_S)
    left = ending.left()
    if left:
        return [f"process {', '.join(map(str, sorted(left)))} of the new side does not end"]
    strangers = sides.owners(state, world, state.new_cookies)
    if strangers:
        listed = ", ".join(f"{pid} ({world.processes.command(pid)})" for pid in strangers)
        return [f"process {listed} listens, and is left alone: it does not descend from the command"]
    return []


class _Ending:
    """The processes of the new side on their way out: also those that are daemons by now, or come up meanwhile."""

    def __init__(self, state: ReloadState, world: World) -> None:
        self._state = state
        self._world = world
        self._told: set[object] = set()
        self._begun_s = world.clock.now_s()

    def left(self) -> set[int]:
        """Those that run, but neither the tool nor its ancestors."""
        tree = self._world.processes.tree()
        found = sides.new_processes(self._state, self._world, tree) - untouchable(self._world, tree)
        return found - {process.pid for process in tree.running(self._state.old_side)}

    def done(self) -> bool:
        """Whether none is left. Roots are told first: a master ends its workers, and starts none anew."""
        left = self.left()
        tree = self._world.processes.tree()
        hurry = self._world.clock.now_s() - self._begun_s >= _HURRY_S
        for process in tree.identities(left if hurry else tree.tops(left)):
            if process not in self._told:
                self._told.add(process)
                self._world.processes.signal(process, signal.SIGTERM)
        return not left

    def kill(self) -> None:
        """End those that do not obey."""
        for process in self._world.processes.tree().identities(self.left()):
            self._world.processes.signal(process, signal.SIGKILL)
