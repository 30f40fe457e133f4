"""The run of a reload: the steps in their order, and what an error means in each."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from reuseport_tool.errors import ToolError
from reuseport_tool.models import Reload, Step
from reuseport_tool.record import record
from reuseport_tool.reload import outcome, report, rollback, sides, ways
from reuseport_tool.reload.saving import save, since_begin_s
from reuseport_tool.reload.state import NO_WAY_BACK, ReloadState
from reuseport_tool.reload.steps import canary as canary_step
from reuseport_tool.reload.steps import drain as drain_step
from reuseport_tool.reload.steps.canary import canary
from reuseport_tool.reload.steps.compare import compare
from reuseport_tool.reload.steps.confirm import confirm
from reuseport_tool.reload.steps.drain import drain
from reuseport_tool.reload.steps.health import health
from reuseport_tool.reload.steps.leftovers import leftovers
from reuseport_tool.reload.steps.prepare import prepare
from reuseport_tool.reload.steps.prove import prove, restore_sysctl
from reuseport_tool.reload.steps.register import register
from reuseport_tool.reload.steps.start import start
from reuseport_tool.reload.steps.stop import ask, stop
from reuseport_tool.reload.steps.switch import switch
from reuseport_tool.reload.world import World


def _always(_state: ReloadState) -> bool:
    return True


@record
class _Stage:
    """One step: `needed` says whether it has something to do, `whole` that an interrupt waits for its end."""

    name: str
    act: Callable[[ReloadState, World], ReloadState]
    needed: Callable[[ReloadState], bool] = _always
    whole: bool = False


def _overlaps(state: ReloadState) -> bool:
    """Whether both sides listen at once, so that the new one is looked at before the old one is stopped."""
    return state.plan.run is None


_BEFORE = (
    _Stage(name="prepare", act=prepare),
    _Stage(name="start", act=start),
    _Stage(name="compare", act=compare),
    _Stage(name="register", act=register, whole=True),
    _Stage(name="canary", act=canary, needed=canary_step.is_asked_for),
    _Stage(name="switch", act=switch, whole=True),
    _Stage(name="health", act=health, needed=_overlaps),
    _Stage(name="drain", act=drain, needed=drain_step.is_needed),
    _Stage(name="confirm", act=confirm),
)
_AFTER = (
    _Stage(name="stop", act=stop),
    _Stage(name="health", act=health, needed=lambda state: not _overlaps(state)),
    _Stage(name="leftovers", act=leftovers),
    _Stage(name="prove", act=prove),
)


STEPS = tuple(dict.fromkeys(stage.name for stage in (*_BEFORE, *_AFTER)))
"""The names of all steps, in their order."""


def execute(state: ReloadState, world: World) -> Reload:
    """Reload, or go on with a reload.

    Before the stop any exception rolls back; after it the run goes forward to the end.

    Raises:
        RolledBack, Interrupted: it failed, and the old side works as before.
        ToolError: it failed otherwise; `report` says what was done.
    """
    if not state.is_past:
        try:
            for stage in _BEFORE:
                state = _do(stage, state, world)
            world.clock.check()
            with world.clock.held_back():
                state = ask(state, world)
        except BaseException as error:
            with world.clock.held_back():
                state = _latest(state, world)
                if rollback.must_go_forward(state, world):
                    return _go_forward(error, state, world)
                rollback.roll_back(error, state, world)
    with world.clock.held_back():
        return _finish(state, world, _AFTER, [])


def _do(stage: _Stage, state: ReloadState, world: World) -> ReloadState:
    """One step, timed and reported."""
    begun = _Begun(since_begin_s=since_begin_s(state, world), now_s=world.clock.now_s())
    needed = stage.needed(state)
    if state.step != stage.name and not (stage.name == "health" and state.step in NO_WAY_BACK):
        state = save(state, world, step=stage.name)
    world.tell.begin(stage.name)
    try:
        world.clock.check()
        if needed:
            with world.clock.held_back() if stage.whole else contextlib.nullcontext():
                state = stage.act(state, world)
            world.clock.check()
            _hooks(stage, state, world)
    except BaseException as error:
        step = _ended(stage, begun, world, "failed", rollback.described(error))
        with contextlib.suppress(Exception):  # the step's own error is the one to tell
            save(_latest(state.with_step(step), world), world)
        raise
    # Written down with what comes next: a step that was done is done again by a run that goes on.
    return state.with_step(_ended(stage, begun, world, "done" if needed else "skipped"))


def _latest(state: ReloadState, world: World) -> ReloadState:
    """What was last written down, with the steps that have ended since."""
    last = world.journal.last() or state
    return dataclasses.replace(last, steps=max(last.steps, state.steps, key=len))


@record
class _Begun:
    """When a step began: since the reload began, and by the monotonic clock."""

    since_begin_s: float
    now_s: float


def _ended(stage: _Stage, begun: _Begun, world: World, outcome: str, detail: str = "") -> Step:
    step = Step(
        name=stage.name,
        begin_s=begun.since_begin_s,
        duration_s=round(world.clock.now_s() - begun.now_s, 4),
        outcome=outcome,
        detail=detail,
    )
    world.tell.end(step)
    return step


def _hooks(stage: _Stage, state: ReloadState, world: World) -> None:
    """What the operator wants to run after a step. Raises ToolError when a command fails or takes too long."""
    for hook in state.plan.hooks:
        if hook.step == stage.name:
            world.processes.run(hook.command, state.plan.hook_timeout_s, f"the hook after {stage.name}")


def _finish(state: ReloadState, world: World, stages: Sequence[_Stage], errors: list[BaseException]) -> Reload:
    """Forward to the end, whatever fails; then tell of the first failure."""
    for stage in stages:
        if stage.name == "health" and not stage.needed(state):
            continue
        try:
            state = _do(stage, state, world)
        except BaseException as error:
            errors.append(error)
            state = _latest(state, world)
            if stage.name == "stop" and rollback.old_serves(state, world):
                break  # what comes after a stop is not true yet
    else:
        with _noted(errors):
            state = restore_sysctl(state, world)
    with _noted(errors):
        world.listeners.let_go()
    with _noted(errors):
        world.journal.remove()
    done = None
    with _noted(errors):
        done = report.made(state, world, "reloaded")
    if done is not None:
        outcome.keep(done, state, world, "; ".join(map(rollback.described, errors)) or None)
    if errors or done is None:
        raise _failed(errors[0], done) from errors[0]
    return done


@contextlib.contextmanager
def _noted(errors: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        errors.append(error)


def _go_forward(error: BaseException, state: ReloadState, world: World) -> Reload:
    """The old side is gone and the new one listens: that one serves, whatever was to be asked of it."""
    hint, log = (error.hint, error.log) if isinstance(error, ToolError) else (None, rollback.trace(error))
    text = f"{rollback.described(error)}; the old side is gone, so the new one was left to serve"
    errors: list[BaseException] = [ToolError(text, hint=hint, log=log)]
    with _noted(errors):
        state = save(sides.find_new(state, world), world, forward=True)
    for group in state.kept:
        with _noted(errors):
            ways.of(group).revive(group, world)
    for act in (register, switch):
        with _noted(errors):
            state = act(state, world)
    stages = [stage for stage in _AFTER if stage.name != "stop" or not rollback.old_serves_alone(state, world)]
    return _finish(state, world, stages, errors)


def _failed(error: BaseException, done: Reload | None) -> ToolError:
    """The error of a run that went to the end, with its report."""
    text = "; ".join((rollback.described(error), *report.losses(done)))
    if isinstance(error, ToolError):
        return ToolError(text, hint=error.hint, log=error.log, report=done)
    return ToolError(text, log=rollback.trace(error), report=done)
