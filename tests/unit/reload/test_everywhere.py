"""An error, an interrupt and a kill at each look at the world and at each change of it: a reload is done or undone."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, Interrupted, RolledBack, ToolError
from reuseport_tool.models import Endpoint, Strategy
from reuseport_tool.record import record
from reuseport_tool.reload import transaction
from tests.unit.reload import scenes
from tests.unit.reload.fake.records import OLD, WEB, Killed
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import TLS, go, opens, others, outcome, scene, served_by, settled, undone


@record
class Case:
    """A reload that goes well when nothing happens."""

    groups: tuple[Endpoint, ...] = (WEB,)
    attached: bool = False
    instances: int = 0
    how: dict[str, Any] = field(default_factory=dict)

    def world(self) -> FakeWorld:
        return scene(*self.groups, attached=self.attached, instances=self.instances)

    def go(self, world: FakeWorld) -> Any:
        return go(world, **self.how)


def replaces(world: FakeWorld, pid: int) -> None:
    """The command of --run stops the old server and starts a new one."""
    new = world.process(parent=1, executable="/new")
    world.later(0.3, lambda: world.end(OLD))
    world.later(0.5, lambda: new in world.procs and world.listen(new) and None)
    world.later(0.6, lambda: world.end(pid))


CASES = {
    "fresh": Case(),
    "attached": Case(attached=True),
    "two groups": Case(groups=(WEB, TLS)),
    "canary": Case(how={"canary": (10.0, 50.0), "step_s": 0.3, "health_url": "http://127.0.0.1/"}),
    "instances": Case(attached=True, instances=2, how={"old_pids": (OLD,)}),
    "canary beside instances": Case(instances=1, how={"old_pids": (OLD,), "canary": (10.0,), "step_s": 0.3}),
    "sysctl": Case(how={"strategy": Strategy.SYSCTL}),
}


def calls(case: Case) -> int:
    world = case.world()
    return scenes.steps(world, lambda: case.go(world))


def every(case: Case) -> range:
    """The numbers of all calls; of every third one where the case differs from another one in a part only."""
    return range(1, calls(case) + 1, 1 if case == CASES["fresh"] else 3)


def disturbed(
    case: Case, disturb: Callable[[FakeWorld, int], None]
) -> Iterator[tuple[int, FakeWorld, str | None, BaseException | None]]:
    """The number of the call, the world, and how the reload ended, for a disturbance at each call."""
    for number in every(case):
        world = case.world()
        world.tap = scenes.at(number, functools.partial(disturb, world, number))
        yield number, world, *outcome(functools.partial(case.go, world))


def done(world: FakeWorld, case: Case, ended: bool = True) -> None:
    """The new server serves every group, and the old one is gone."""
    settled(world, 5 * len(case.groups), case.groups)
    assert world.migrate_req == "0"
    for each in case.groups:
        assert served_by(world, each) & others(world)
        assert OLD not in served_by(world, each)
    assert OLD not in world.procs or not ended
    for number in range(case.instances):
        assert OLD + 1 + number in served_by(world, case.groups[0]), "the other instances serve on"


@pytest.mark.parametrize("name", CASES)
def test_without_a_disturbance(name: str) -> None:
    case = CASES[name]
    world = case.world()
    report = case.go(world)
    assert report.result == "reloaded"
    assert report.resets.lost == 0
    done(world, case)


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ToolError("it failed"),
    lambda: OSError(errno.EMFILE, "too many open files"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: RuntimeError("nobody expected this"),
    lambda: MemoryError(),
]


@pytest.mark.parametrize("name", CASES)
def test_an_exception_anywhere(name: str) -> None:
    case = CASES[name]

    def fail(_: FakeWorld, number: int) -> None:
        raise ERRORS[number % len(ERRORS)]()

    for _, world, result, raised in disturbed(case, fail):
        if OLD in world.procs:
            undone(world, case.attached, case.groups)
            assert isinstance(raised, BaseException)
            if result == "rolled-back":
                assert isinstance(raised, RolledBack)
        else:
            done(world, case)


@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_anywhere(name: str) -> None:
    case = CASES[name]
    for _, world, result, raised in disturbed(case, lambda world, _: setattr(world, "interrupted", True)):
        if result == "reloaded":
            done(world, case)
        else:
            assert isinstance(raised, Interrupted)
            undone(world, case.attached, case.groups)


@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize("name", [*CASES])
def test_a_kill_anywhere(name: str, then: str) -> None:
    case = CASES[name]
    for number in every(case):
        world = case.world()
        world.tap = scenes.kill_at(number)
        with contextlib.suppress(Killed, ToolError):
            case.go(world)
        world.restart_tool()
        if world.journal is None:
            assert served_by(world)  # before it began, or after it was done
            continue
        world.advance(1.0)  # the world goes on without the tool
        finish(world, then)
        if OLD in world.procs:
            undone(world, case.attached, case.groups)
        else:
            done(world, case)


def finish(world: FakeWorld, then: str) -> None:
    """Another run resumes, or aborts what can be undone and resumes the rest."""
    made = world.world()
    if then == "abort" or world.saved().step == "roll back":
        try:
            transaction.aborted(world.saved(), made)
            return
        except Conflict:
            pass
    transaction.resumed(world.saved(), made)


@pytest.mark.parametrize("name", CASES)
def test_the_old_side_goes_anywhere(name: str) -> None:
    """It ends by itself: whoever listens then serves, and nobody is told that all is as before."""
    case = CASES[name]
    for _, world, result, raised in disturbed(case, lambda world, _: world.end(OLD)):
        assert world.journal is None
        new = others(world)
        if new:
            assert all(served_by(world, each) & new for each in case.groups)
            assert result == "reloaded"
        elif not case.instances:
            assert isinstance(raised, ToolError)


@pytest.mark.parametrize("name", CASES)
def test_the_new_side_goes_anywhere(name: str) -> None:
    case = CASES[name]

    def end(world: FakeWorld, _: int) -> None:
        for pid in others(world):
            world.end(pid, 1)

    for number, world, result, raised in disturbed(case, end):
        assert world.journal is None
        if others(world):
            done(world, case)  # it had not started yet
        elif OLD in world.procs:
            undone(world, case.attached, case.groups)
            assert raised is not None
        elif result == "reloaded" and raised is None:
            assert number > calls(case) - 40, "it ended after the last look"


@pytest.mark.parametrize("name", ["fresh", "two groups", "canary"])
def test_the_old_side_goes_and_an_interrupt_follows(name: str) -> None:
    """A roll-back never ends the last one that serves."""
    case = CASES[name]
    for number in every(case):
        world = case.world()

        def strike(world: FakeWorld = world) -> None:
            world.end(OLD)
            world.interrupted = True

        world.tap = scenes.at(number, strike)
        result, raised = outcome(lambda world=world: case.go(world))  # type: ignore[misc]
        assert world.journal is None
        if others(world):
            assert all(served_by(world, each) for each in case.groups)
            assert result == "reloaded"
        else:
            assert isinstance(raised, ToolError)


def test_progress_that_fails_changes_nothing() -> None:
    """Only the journal and the world decide."""
    world = scene()

    def fail(name: str) -> None:
        if name in ("begin", "end", "note", "warn"):
            raise BrokenPipeError

    from reuseport_tool.reload.live import Silent

    class Broken:
        def __getattr__(self, name: str) -> Callable[[object], None]:
            def tell(_what: object) -> None:
                fail(name)

            return tell

    made = world.world()
    import dataclasses

    from reuseport_tool.reload import run, survey
    from reuseport_tool.reload.plan import Plan

    made = dataclasses.replace(made, tell=Silent(Broken()))  # type: ignore[arg-type]
    plan = Plan(command=("new",))
    found = survey.survey([WEB], plan, made)
    assert run.execute(transaction.begun([WEB], plan, Strategy.MIGRATE, found, made), made).result == "reloaded"


def test_the_scene_loses_without_the_tool() -> None:
    world = scene()
    pid = world.process()
    world.listen(pid)
    world.end(OLD)
    assert world.lost == 5


_ = opens
