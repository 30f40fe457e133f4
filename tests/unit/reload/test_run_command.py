"""--run: a server that replaces itself, keeps its listeners, or fails to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from reuseport_tool.errors import RolledBack, ToolError
from tests.unit.reload.fake.records import OLD, OPTIONS
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import exits, go, outcome, scene, served_by, settled, silent, undone


def replaces(gap_s: float = 0.3, parent: int = 1, executable: str = "/new") -> Any:
    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.3, lambda: world.end(OLD))
        world.later(0.3 + gap_s, lambda: world.listen(world.process(300, parent, executable=executable)) and None)
        world.later(0.4 + gap_s, lambda: world.end(pid))

    return behave


@pytest.mark.parametrize("executable", ["/new", "/server"])
@pytest.mark.parametrize("attached", [False, True])
def test_a_server_that_replaces_itself_with_a_gap(attached: bool, executable: str) -> None:
    world = scene(behaviour=replaces(executable=executable), attached=attached)
    assert go(world, run="restart").result == "reloaded"
    settled(world, 5)
    assert served_by(world) == {300}


def test_a_respawn_is_not_what_run_waits_for() -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.2, lambda: world.end(OLD + 1))
        world.later(0.3, lambda: world.listen(world.process(250)) and None)
        world.later(2.0, lambda: world.listen(world.process(300, executable="/new")) and None)
        world.later(2.5, lambda: (world.end(OLD), world.end(pid)))

    world = scene(behaviour=behave, instances=1)
    report = go(world, run="restart")
    assert report.result == "reloaded"
    assert 300 in served_by(world)


def test_a_server_that_keeps_its_listeners() -> None:
    world = scene(behaviour=exits(0), attached=True)
    world.socks[1].accepts = True
    report = go(world, run="true")
    assert report.result == "reloaded"
    assert report.new.listeners == (1,)
    assert served_by(world) == {OLD}
    assert any("kept 1" in warning for warning in report.warnings)


def test_a_server_that_keeps_some_of_its_listeners() -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.2, lambda: world.listen(OLD) and None)
        world.later(0.3, lambda: world.listen(world.process(300, executable="/new")) and None)
        world.later(0.5, lambda: world.end(pid))

    world = scene(behaviour=behave)
    world.socks[1].accepts = True
    assert go(world, run="reload").result == "reloaded"
    assert OLD in world.procs


@pytest.mark.parametrize("code", [4, 0])
def test_a_run_that_fails(code: int) -> None:
    world = scene(behaviour=exits(code) if code else silent)
    with pytest.raises(RolledBack):
        go(world, run="restart", start_timeout_s=1.0)
    undone(world, False)


def test_a_run_that_stops_the_old_side_and_fails_then() -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.2, lambda: world.end(OLD))
        world.later(0.4, lambda: world.listen(world.process(300, executable="/new"), options=UNSAFE) and None)

    UNSAFE = dataclasses.replace(OPTIONS, save_syn=1)
    world = scene(behaviour=behave)
    result, error = outcome(lambda: go(world, run="restart"))
    assert (result, type(error)) == ("reloaded", ToolError)
    assert "the old side is gone" in str(error)
    assert served_by(world) == {300}
    settled(world, 5)
