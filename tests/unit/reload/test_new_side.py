"""The new side: what is tied to the command or to the process that was named, and nothing else."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError, UsageError
from tests.unit.reload.fake.records import OLD, SHELL, TOOL
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import daemon, exits, go, opens, refused, scene, served_by, settled, silent, undone


def test_a_daemon_is_ours() -> None:
    world = scene(behaviour=daemon)
    assert go(world).result == "reloaded"
    settled(world, 5)


def staggered(world: FakeWorld, pid: int) -> None:
    """Its workers begin to listen one after the other."""
    for number in range(3):
        world.later(0.2 + 0.7 * number, lambda: pid in world.procs and world.listen(pid) and None)


def test_workers_that_come_one_after_the_other_are_all_registered() -> None:
    world = scene(behaviour=staggered)
    for _ in range(2):
        world.listen(OLD)
    report = go(world)
    assert len(report.new.listeners) == 3
    assert report.warnings == ()


@pytest.mark.parametrize(("listeners", "is_told"), [(None, True), (1, False)])
def test_fewer_listeners_than_before_are_told(listeners: int | None, is_told: bool) -> None:
    """A worker that comes after the end gets no connections: an operator who did not say how many there are knows."""
    world = scene()
    world.listen(OLD)
    warnings = go(world, listeners=listeners).warnings
    assert [text for text in warnings if "1 listener, the old one had 2" in text] == list(warnings)
    assert bool(warnings) is is_told


@pytest.mark.parametrize("behaviour", [daemon, silent, opens(after_s=9.0)])
def test_a_slow_new_side_is_ended_with_all_that_it_started(behaviour: Any) -> None:
    world = scene(behaviour=behaviour)
    with pytest.raises(RolledBack):
        go(world, start_timeout_s=0.5)
    world.advance(20)
    undone(world, False)


def test_a_wrapper_that_ends_leaves_nobody_behind() -> None:
    def wrap(world: FakeWorld, pid: int) -> None:
        world.process(parent=pid, executable="/new", on_term="ignore")

    world = scene(behaviour=wrap)
    with pytest.raises(RolledBack):
        go(world, start_timeout_s=0.5)
    undone(world, False)
    assert {number for _, number in world.signals} == {signal.SIGTERM, signal.SIGKILL}


def test_what_cannot_be_ended_is_told() -> None:
    world = scene(behaviour=silent)
    end = world.end
    world.end = lambda pid, code=0: None if pid >= 200 else end(pid, code)  # type: ignore[method-assign]
    with pytest.raises(RolledBack, match="does not end"):
        go(world, start_timeout_s=0.5)


def test_an_old_instance_that_is_respawned_is_not_the_new_one() -> None:
    world = scene(instances=1, behaviour=opens(after_s=2.0))

    def respawn() -> None:
        world.end(OLD + 1)
        world.listen(world.process(300))

    world.later(0.5, respawn)
    report = go(world)
    assert served_by(world) == {200}
    assert 300 in world.procs
    assert any("300" in warning for warning in report.warnings)


def test_a_bystander_outlives_a_roll_back() -> None:
    world = scene(behaviour=silent)
    world.process(60, parent=TOOL, name="bystander")
    world.later(0.2, lambda: world.listen(world.process(300)) and None)
    with pytest.raises(RolledBack, match="300"):
        go(world, start_timeout_s=1.0)
    assert {60, 300} <= world.procs.keys()


@pytest.mark.parametrize(("code", "text"), [(0, "ended without a listener"), (3, "exited with 3"), (-9, "SIGKILL")])
def test_a_command_that_ends_is_told_at_once(code: int, text: str) -> None:
    world = scene(behaviour=exits(code))
    with pytest.raises(RolledBack, match=text):
        go(world)
    assert world.now < 1010, "not only at the time-out"
    undone(world, False)


def test_a_command_that_does_not_exist() -> None:
    refused(UsageError, scene(), command=("missing",))


def test_a_server_that_somebody_else_started() -> None:
    world = scene()
    new = world.process(300)
    cookie = world.listen(new)
    report = go(world, new_pid=new)
    assert report.new.listeners == (cookie,)
    settled(world, 5)
    refused(NotFound, scene(), new_pid=999)


def test_a_given_server_that_has_inherited_the_listeners_needs_no_reload() -> None:
    """As nginx does it after USR2."""
    world = scene()
    new = world.process(300)
    for sock in world.socks.values():
        sock.holders.add(new)
    with pytest.raises(NotFound) as caught:
        go(world, new_pid=new)
    assert "nothing has to move" in (caught.value.hint or "")
    assert not world.signals


def test_a_given_server_is_left_alone_by_a_roll_back() -> None:
    world = scene()
    new = world.process(300)
    world.listen(new, accepts=False, queue=1)
    with pytest.raises(RolledBack):
        go(world, new_pid=new, health_timeout_s=0.5)
    assert new in world.procs
    assert not world.signals


def test_a_given_server_that_ends() -> None:
    world = scene()
    world.process(300)
    world.later(0.5, lambda: world.end(300))
    with pytest.raises(ToolError, match="300 has ended"):
        go(world, new_pid=300)


def test_the_tool_may_descend_from_the_old_server() -> None:
    world = scene()
    world.procs[SHELL].parent = OLD
    refused(Conflict, world)
    world = scene()
    world.procs[SHELL].parent = OLD
    world.on_hook = lambda command: world.close(1, OLD)
    assert go(world, stop_command="quit").result == "reloaded"
    assert served_by(world) == {200}
