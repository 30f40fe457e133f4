"""Scenes: a server that runs, a new one that starts in some way, and what must hold at the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from reuseport_tool.errors import ToolError
from reuseport_tool.models import Endpoint, Reload, Strategy
from reuseport_tool.reload import run, survey, transaction
from reuseport_tool.reload.plan import Plan
from tests.unit.reload.fake.records import OLD, OURS, WEB, Killed, Pin, group
from tests.unit.reload.fake.world import FakeWorld

TLS, ADMIN = group("127.0.0.1:443"), group("127.0.0.1:9000")
Behaviour = Callable[[FakeWorld, int], None]


def opens(*groups: Endpoint, after_s: float = 0.2, **how: Any) -> Behaviour:
    """The command listens in these groups after a while."""

    def behave(world: FakeWorld, pid: int) -> None:
        def listen() -> None:
            if pid in world.procs:
                for each in groups or (WEB,):
                    world.listen(pid, each, **how)

        world.later(after_s, listen)

    return behave


def daemon(world: FakeWorld, pid: int) -> None:
    """The command forks twice, its parents end, and the daemon listens later."""
    inner = world.process(parent=pid, executable="/new")
    last = world.process(parent=inner, executable="/new")
    world.later(0.2, lambda: world.end(pid))
    world.later(0.3, lambda: world.end(inner))
    world.later(0.8, lambda: last in world.procs and world.listen(last) and None)


def exits(code: int) -> Behaviour:
    return lambda world, pid: world.later(0.2, lambda: world.end(pid, code))


def silent(world: FakeWorld, pid: int) -> None:
    """The command runs and never listens."""


def scene(
    *groups: Endpoint, behaviour: Behaviour | None = None, attached: bool = False, queue: int = 5, instances: int = 0
) -> FakeWorld:
    """An old server in these groups with waiting connections, perhaps attached, perhaps beside other instances."""
    world = FakeWorld()
    groups = groups or (WEB,)
    world.process(OLD)
    cookies = {each: {world.listen(OLD, each, queue=queue, accepts=False)} for each in groups}
    for number in range(instances):
        other = world.process(OLD + 1 + number)
        for each in groups:
            cookies[each].add(world.listen(other, each))
    if attached:
        for each in groups:
            world.pins[each] = Pin(working=3, generations={3: cookies[each]})
            world.programs[each] = OURS
    world.behaviour = behaviour or opens(*groups)
    return world


def go(world: FakeWorld, *endpoints: Endpoint, strategy: Strategy = Strategy.MIGRATE, **how: Any) -> Reload:
    """Reload. Raises as transaction.reload()."""
    options: dict[str, Any] = {"command": ("new",)} if not {"run", "new_pid"} & how.keys() else {}
    plan = Plan(**{**options, **how})
    asked = list(endpoints or (WEB,))
    made = world.world()
    found = survey.survey(asked, plan, made)
    if found.refusal is not None:
        raise found.refusal
    return run.execute(transaction.begun(asked, plan, strategy, found, made), made)


def refused(kind: type[ToolError], world: FakeWorld, *endpoints: Any, **how: Any) -> ToolError:
    """The reload is refused before anything is started or signalled."""
    with pytest.raises(kind) as caught:
        go(world, *endpoints, **how)
    assert not others(world)
    assert not world.signals
    assert world.journal is None
    return caught.value


def steps(world: FakeWorld, act: Callable[[], object]) -> int:
    """How often the tool looks at the world or changes it."""
    calls = 0

    def count(_name: str) -> None:
        nonlocal calls
        calls += 1

    world.tap = count
    act()
    return calls


def at(number: int, act: Callable[[], None]) -> Callable[[str], None]:
    """A tap that acts at one call, and at none after."""
    calls = 0

    def tap(_name: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            act()

    return tap


def kill_at(number: int) -> Callable[[str], None]:
    """A tap by which the tool dies at one call: from then on it changes nothing."""
    calls = 0

    def tap(_name: str) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise Killed

    return tap


def outcome(act: Callable[[], Reload]) -> tuple[str, BaseException | None]:
    """`reloaded` or `rolled-back` or `failed`, and what was raised."""
    try:
        return act().result, None
    except Exception as error:
        report = getattr(error, "report", None)
        return (report.result if isinstance(report, Reload) else "failed"), error


def served_by(world: FakeWorld, endpoint: Endpoint = WEB) -> set[int]:
    """The processes that get the new connections of a group."""
    return {pid for cookie in world.gets_new(endpoint) for pid in world.socks[cookie].holders}


def others(world: FakeWorld) -> set[int]:
    """The processes that were started since the scene began."""
    return {pid for pid in world.procs if pid >= 200}


def settled(world: FakeWorld, connections: int, groups: Sequence[Endpoint] = (WEB,)) -> None:
    """Nothing is lost, everybody is served by somebody who lives, and no half of a reload is left."""
    assert world.lost == 0
    assert world.journal is None
    assert not world.copies
    waiting = sum(sock.queue for sock in world.socks.values())
    assert waiting + sum(world.answered.values()) == connections
    for each in groups:
        assert served_by(world, each), f"nobody serves {each}"
        pin = world.pins.get(each)
        if pin is not None:
            assert not pin.canary[0]
    assert all(pid > 1 for pid, _ in world.signals)
    assert all(number in (signal.SIGTERM, signal.SIGKILL) for _, number in world.signals)


def undone(world: FakeWorld, attached: bool, groups: Sequence[Endpoint] = (WEB,)) -> None:
    """Everything is as before the reload."""
    settled(world, 5 * len(groups), groups)
    assert others(world) == set()
    assert world.migrate_req == "0"
    for each in groups:
        assert OLD in served_by(world, each)
        assert (each in world.pins) is attached
        if attached:
            assert world.pins[each].working == 3
            assert set(world.pins[each].generations) == {3}
    assert all(pid >= 200 for pid, _ in world.signals), "nobody else was signalled"
