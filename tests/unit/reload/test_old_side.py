"""The old side: one instance of several, its holders, its end, and what it leaves behind."""

from __future__ import annotations

import signal

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError
from reuseport_tool.models import Strategy
from reuseport_tool.reload.plan import Hook
from tests.unit.reload.fake.records import OLD, OURS, WEB, Proc
from tests.unit.reload.scenes import go, opens, outcome, refused, scene, served_by


def test_one_instance_of_several() -> None:
    world = scene(instances=2, attached=True)
    go(world, old_pids=(OLD,))
    assert served_by(world) == {OLD + 1, OLD + 2, 200}
    assert world.pins[WEB].working == 3
    assert set(world.pins[WEB].generations) == {3}


def test_a_canary_beside_instances_is_exact() -> None:
    world = scene(instances=1)
    seen = []

    def look() -> None:
        pin = world.pins[WEB]
        holders = [world.socks[cookie].holders for cookie in pin.generations[pin.canary[0]]]
        seen.append((pin.canary[1], holders, len(pin.generations[pin.working])))

    world.later(1.0, look)
    report = go(world, old_pids=(OLD,), canary=(10.0,), step_s=2.0)
    assert seen == [(10.0, [{200}], 2)]
    assert [step.percent for step in report.canary] == [10.0]
    assert served_by(world) == {OLD + 1, 200}


def test_the_first_process_is_never_signalled() -> None:
    for options in ({}, {"force": True}):
        world = scene()
        world.socks[1].holders = {1}
        assert "--stop-command" in (refused(Conflict, world, **options).hint or "")
    world = scene()
    world.socks[1].holders = {1}
    world.on_hook = lambda command: world.close(1, 1)
    assert go(world, stop_command="systemctl stop web.socket").result == "reloaded"


def test_a_child_that_inherited_a_listener_is_found_before_the_stop() -> None:
    world = scene()
    world.socks[1].holders.add(world.process(110, parent=OLD, name="sleep", executable="/bin/sleep"))
    assert "process 110 (sleep)" in refused(Conflict, world).message
    world = scene()
    world.socks[1].holders.add(world.process(110, parent=OLD, name="waiter", executable="/other"))
    with pytest.raises(ToolError, match="still listens"):
        go(world, stop_timeout_s=0.5)


def test_a_holder_that_comes_later_is_found_before_the_stop() -> None:
    world = scene()
    world.later(0.4, lambda: world.socks[1].holders.add(world.process(110, parent=OLD, executable="/bin/sleep")))
    with pytest.raises(RolledBack, match="110"):
        go(world)
    world = scene()
    world.later(0.4, lambda: world.socks[1].holders.add(world.process(110, parent=OLD, executable="/bin/sleep")))
    report = go(world, force=True)
    assert any("110" in warning for warning in report.warnings)


def test_what_systemd_will_make_of_it_is_told() -> None:
    world = scene()
    world.procs[OLD].unit = "/system.slice/web.service"
    (warning,) = go(world).warnings
    assert "systemctl restart web.service" in warning
    world = scene()
    world.procs[world.tool].unit = "/system.slice/deploy.service"
    (warning,) = go(world).warnings
    assert "part of deploy.service" in warning


@pytest.mark.parametrize("option", [{"stop_command": "systemctl stop web"}, {}])
def test_a_server_in_the_unit_of_the_tool_is_no_warning(option: dict[str, str]) -> None:
    """ExecReload= of the server's unit; and systemd stops a server by --stop-command."""
    world = scene()
    world.procs[OLD].unit = "/system.slice/web.service"
    world.procs[world.tool].unit = None if option else "/system.slice/web.service"
    world.on_hook = lambda command: world.end(OLD)
    assert go(world, **option).warnings == ()


def test_a_group_that_ended_with_the_old_side_is_attached_again() -> None:
    """The kernel makes a new group for the new listener, and that has no program."""
    world = scene(behaviour=opens(after_s=0.5))
    world.later(0.2, lambda: world.end(OLD))
    with pytest.raises(ToolError, match="our program ended with the last listener of the group; the old side is gone"):
        go(world)
    assert world.programs[WEB] == OURS
    assert served_by(world) == {200}


def test_a_new_server_that_ends_in_the_last_hook_before_the_stop() -> None:
    world = scene(queue=0)
    world.on_hook = lambda _command: world.end(200)
    with pytest.raises(RolledBack, match="are gone"):
        go(world, hooks=(Hook(step="confirm", command="test"),))
    assert served_by(world) == {OLD}


def test_workers_that_outlive_their_master_are_stopped_as_well() -> None:
    world = scene()
    world.socks[1].holders.add(world.process(110, parent=OLD))
    assert go(world).result == "reloaded"
    assert (110, signal.SIGTERM) in world.signals


def test_an_old_side_that_does_not_stop() -> None:
    world = scene()
    world.procs[OLD].on_term = "ignore"
    for how in ({}, {"strategy": Strategy.SYSCTL}):
        world = scene()
        world.procs[OLD].on_term = "ignore"
        with pytest.raises(ToolError, match="still listens") as caught:
            go(world, stop_timeout_s=0.5, **how)
        assert type(caught.value) is ToolError
        assert world.journal is None
        assert world.migrate_req == ("1" if how else "0"), "the old listeners need it when they close"


def test_a_stop_command_that_fails() -> None:
    world = scene()
    world.failing_hooks = {"quit"}
    world.later(3.0, lambda: world.end(OLD))
    report = go(world, stop_command="quit")
    assert any("quit" in warning for warning in report.warnings)


def test_several_owners_of_whom_one_cannot_be_signalled() -> None:
    world = scene(instances=1)
    made = world.process(OLD)
    assert go(world).result == "reloaded"
    assert made not in world.procs


def test_a_new_side_that_dies_while_the_old_one_stops() -> None:
    world = scene()

    def stop_slowly() -> None:
        world.later(1.0, lambda: world.end(200))
        world.later(2.0, lambda: world.end(OLD))

    world.procs[OLD].on_term = stop_slowly
    result, error = outcome(lambda: go(world))
    assert (result, type(error)) == ("reloaded", ToolError)
    assert "does not listen" in str(error)


def test_listeners_that_come_late_are_registered() -> None:
    world = scene()
    world.procs[OLD].on_term = lambda: (world.listen(200), world.later(0.5, lambda: world.end(OLD)))  # type: ignore[assignment,return-value]
    report = go(world)
    assert len(report.new.listeners) == 2
    assert world.gets_new() == set(report.new.listeners)


def test_what_the_old_side_has_accepted() -> None:
    world = scene()
    world.procs[OLD].on_term = lambda: world.close(1, OLD)
    world.old_connections = 3
    assert go(world).leftovers.left == 3
    world = scene()
    world.procs[OLD].on_term = lambda: world.close(1, OLD)
    world.old_connections = 3
    world.later(3.0, lambda: setattr(world, "old_connections", 1))
    left = go(world, drain_timeout_s=8.0, kill_leftovers=True).leftovers
    assert (left.connections, left.ended, left.left) == (3, 1, 0)


def test_an_interrupt_ends_the_wait_for_them() -> None:
    world = scene()
    world.procs[OLD].on_term = lambda: world.close(1, OLD)
    world.old_connections = 3
    world.later(5.0, lambda: setattr(world, "interrupted", True))
    assert go(world, drain_timeout_s=3600.0).leftovers.left == 3
    assert world.now < 1010


@pytest.mark.parametrize("before", ["tree", "masters", "runs"])
def test_a_number_that_passes_to_another_process_while_the_reload_looks(
    monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """The old server of a user ends at that moment, on purpose, and something of root's gets its number."""
    world = scene()
    tap, start = world.tap, world.procs[OLD].start

    def pass_on(name: str) -> None:
        if name == before and world.procs[OLD].start == start:
            world.end(OLD)
            world.procs[OLD] = Proc(pid=OLD, parent=1, name="sshd", start=start + 1)
        tap(name)

    monkeypatch.setattr(world, "tap", pass_on)
    assert "nothing listens" in refused(NotFound, world).message
    assert world.procs[OLD].name == "sshd"


def test_holders_that_always_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    world = scene()
    tap = world.tap

    def come_and_go(name: str) -> None:
        if name == "runs":
            world.procs[OLD].start += 1
        tap(name)

    monkeypatch.setattr(world, "tap", come_and_go)
    assert "come and go" in refused(Conflict, world).message
