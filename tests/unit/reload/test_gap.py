"""--run of UDP servers: what comes while nobody reads is kept, and the new server gets it."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import RolledBack, Unsupported, UsageError
from reuseport_tool.models import Endpoint, FlowMode
from reuseport_tool.reload import transaction
from reuseport_tool.reload.steps.gap import ROOM
from tests.unit.reload import scenes
from tests.unit.reload.fake.datagrams import DEFAULT_BUFFER, FakeGap
from tests.unit.reload.fake.records import OLD, Killed, group
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import exits, go, scene, served_by, settled, silent, undone

DNS = group("udp://127.0.0.1:53")


def replaces_dns(world: FakeWorld, pid: int) -> None:
    """Datagrams come while no server runs."""
    world.later(0.3, lambda: world.end(OLD))
    world.later(0.4, lambda: setattr(world.socks[1], "queue", world.socks[1].queue + 7))
    world.later(0.6, lambda: world.listen(world.process(300, executable="/new"), DNS) and None)
    world.later(0.7, lambda: world.end(pid))


@pytest.mark.parametrize("attached", [False, True])
def test_what_udp_sockets_get_in_the_gap_is_given_on(attached: bool) -> None:
    world = scene(DNS, behaviour=replaces_dns, attached=attached)
    report = go(world, DNS, run="restart")
    assert report.result == "reloaded"
    assert [(group.given, group.not_given) for group in report.datagrams] == [(12, 0)]
    settled(world, 12, (DNS,))
    assert served_by(world, DNS) == {300}


def test_what_does_not_arrive_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent, and the program has not seen it."""
    world = scene(DNS, behaviour=replaces_dns)
    give = FakeGap.give

    def give_one(self: FakeGap, endpoint: Endpoint, cookie: int) -> tuple[int, int]:
        found = give(self, endpoint, cookie)
        world.pins[endpoint].selected -= found[0] // 2
        return found

    monkeypatch.setattr(FakeGap, "give", give_one)
    report = go(world, DNS, run="restart")
    assert [(group.given, group.not_given, group.has_lost) for group in report.datagrams] == [(6, 6, True)]
    assert any("6 of 12 datagrams" in text for text in report.warnings)


def test_udp_sockets_have_room_in_the_gap_only() -> None:
    sizes = []

    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.2, lambda: sizes.append(world.buffers[1]))
        world.later(0.3, lambda: world.end(pid, 4))

    world = scene(DNS, behaviour=behave)
    with pytest.raises(RolledBack):
        go(world, DNS, run="restart")
    assert (sizes, world.buffers[1]) == ([ROOM], DEFAULT_BUFFER)
    undone(world, False, (DNS,))


def test_udp_sockets_have_their_room_again_after_an_abort() -> None:
    world = scene(DNS, behaviour=silent)
    world.later(0.5, lambda: setattr(world, "tap", scenes.kill_at(1)))
    with pytest.raises(Killed):
        go(world, DNS, run="restart")
    assert world.buffers[1] == ROOM
    world.restart_tool()
    transaction.aborted(world.saved(), world.world())
    assert world.buffers[1] == DEFAULT_BUFFER
    undone(world, False, (DNS,))


def test_a_udp_server_that_keeps_its_sockets_is_not_waited_for() -> None:
    world = scene(DNS, behaviour=exits(0), attached=True)
    world.socks[1].accepts = True
    report = go(world, DNS, run="true")
    assert report.new.listeners == (1,)
    assert world.now < 1010
    assert (served_by(world, DNS), world.buffers[1]) == ({OLD}, DEFAULT_BUFFER)


def test_where_nothing_can_be_given_on_run_is_refused() -> None:
    world = scene(DNS, behaviour=replaces_dns)
    world.gap_works = False
    with pytest.raises(Unsupported):
        go(world, DNS, run="restart")
    assert world.started is None
    undone(world, False, (DNS,))


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
def test_flows_cannot_be_kept_over_a_gap(mode: FlowMode) -> None:
    with pytest.raises(UsageError, match="cannot keep the flows"):
        go(scene(DNS), DNS, run="restart", flows=mode)


def parked_when_the_command_runs(world: FakeWorld) -> list[bool]:
    """Whether the old server gets no datagrams any more."""
    seen: list[bool] = []

    def behave(world: FakeWorld, pid: int) -> None:
        world.later(0.2, lambda: seen.append(1 not in world.gets_new(DNS)))
        replaces_dns(world, pid)

    world.behaviour = behave
    return seen


def test_the_old_server_gets_nothing_before_it_is_stopped() -> None:
    world = scene(DNS)
    seen = parked_when_the_command_runs(world)
    assert go(world, DNS, run="restart").result == "reloaded"
    assert seen == [True]
    assert served_by(world, DNS) == {300}


def test_with_settle_0_it_goes_on_until_it_is_stopped() -> None:
    world = scene(DNS)
    seen = parked_when_the_command_runs(world)
    assert go(world, DNS, run="restart", settle_s=0.0).result == "reloaded"
    assert seen == [False]


def test_where_no_socket_can_join_the_group_that_is_said() -> None:
    world = scene(DNS)
    world.may_park = False
    seen = parked_when_the_command_runs(world)
    report = go(world, DNS, run="restart")
    assert (report.result, seen) == ("reloaded", [False])
    assert any("has not answered when it stops" in text for text in report.warnings)


def test_what_waited_for_a_server_that_does_not_come_goes_back() -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        (parked,) = world.gets_new(DNS)
        world.socks[parked].queue += 4
        world.later(0.3, lambda: world.end(pid, 4))

    world = scene(DNS, behaviour=behave)
    world.socks[1].accepts = True
    with pytest.raises(RolledBack):
        go(world, DNS, run="restart")
    assert world.answered == {OLD: 9}
    settled(world, 9, (DNS,))
