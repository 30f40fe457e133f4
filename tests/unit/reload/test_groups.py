"""Which groups a reload hands over: a server is processes, not a port, and the new one listens in the same groups."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError, UsageError
from tests.unit.reload.fake.records import OLD, SHELL, WEB, group
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import ADMIN, TLS, go, opens, others, refused, scene, served_by, settled, undone

DNS, DNS6 = group("udp://127.0.0.1:53"), group("udp://[::1]:53")


def test_all_groups_of_the_server_are_handed_over() -> None:
    world = scene(WEB, TLS, group("[::1]:80"))
    report = go(world, WEB)
    assert len(report.groups) == 3
    settled(world, 15, (WEB, TLS, group("[::1]:80")))
    assert OLD not in world.procs


def test_a_new_version_without_one_of_the_groups_is_rolled_back() -> None:
    world = scene(WEB, TLS, behaviour=opens(WEB))
    with pytest.raises(RolledBack, match="443"):
        go(world, WEB)
    undone(world, False, (WEB, TLS))


def test_only_is_refused_where_other_groups_would_be_closed() -> None:
    assert "443" in refused(Conflict, scene(WEB, TLS), WEB, only=True).message


def test_only_with_a_stop_command_that_closes_a_part() -> None:
    world = scene(WEB, TLS, behaviour=opens(WEB))
    world.on_hook = lambda command: world.close(1, OLD)
    report = go(world, WEB, only=True, stop_command="close 80")
    assert report.groups == (str(WEB),)
    assert any("--only" in warning for warning in report.warnings)
    assert OLD in served_by(world, TLS)
    assert not world.signals


def test_a_group_that_is_dropped_is_drained_before_the_stop() -> None:
    world = scene(WEB, TLS, behaviour=opens(WEB))
    world.later(1.0, lambda: setattr(world.socks[2], "accepts", True))
    report = go(world, WEB, drop=(TLS,))
    assert report.result == "reloaded"
    assert world.lost == 0
    assert world.answered[OLD] == 5


def test_a_dropped_group_that_does_not_drain_rolls_back() -> None:
    world = scene(WEB, TLS, behaviour=opens(WEB))
    with pytest.raises(RolledBack, match="5 queued"):
        go(world, WEB, drop=(TLS,), drain_timeout_s=1.0)
    undone(world, False, (WEB, TLS))


def test_drops_that_make_no_sense() -> None:
    refused(UsageError, scene(), drop=(TLS,))
    refused(UsageError, scene(), drop=(WEB,))


def test_what_is_lost_with_the_server_is_said_before() -> None:
    world = scene()
    world.listen(OLD, ADMIN, reuseport=False)
    report = go(world)
    assert any("9000" in warning and "SO_REUSEPORT" in warning for warning in report.warnings)


def test_udp_groups_of_the_same_server() -> None:
    world = scene(behaviour=opens(WEB, DNS))
    world.listen(OLD, DNS)
    report = go(world)
    assert report.groups == (str(WEB), str(DNS))
    assert served_by(world, DNS) == served_by(world) == {200}
    assert world.lost == 0


@pytest.mark.parametrize("attached", [False, True])
def test_a_udp_group_is_rolled_back(attached: bool) -> None:
    world = scene(WEB, DNS, behaviour=opens(WEB, DNS), attached=attached, queue=0)
    world.failing_hooks = {"check"}
    with pytest.raises(RolledBack):
        go(world, health_command="check")
    assert served_by(world, DNS) == served_by(world) == {OLD}
    assert not others(world)
    assert (DNS in world.pins) is attached


def test_no_group_is_switched_before_all_are_ready() -> None:
    """The new server accepts TCP connections and does not read its UDP socket: it must not get any to accept."""

    def behave(world: FakeWorld, pid: int) -> None:
        opens(WEB)(world, pid)
        opens(DNS, queue=1, accepts=False)(world, pid)

    called: list[str] = []
    world = scene(WEB, DNS, queue=0, behaviour=behave)
    world.tap = called.append
    with pytest.raises(RolledBack, match="does not read"):
        go(world, health_timeout_s=1.0)
    assert called.count("switch") == 2  # back, of each group


def test_a_roll_back_between_two_switches_lets_the_new_server_answer() -> None:
    called: list[str] = []
    world = scene(DNS, DNS6, queue=0)

    def tap(name: str) -> None:
        called.append(name)
        if called.count("switch") == 2 and "watch" not in called and name == "switch":
            raise ToolError("the second switch fails")

    world.tap = tap
    with pytest.raises(RolledBack, match="second switch"):
        go(world, DNS, DNS6)
    assert called.count("watch") == 1  # what the new server sends, until it is quiet


@pytest.mark.parametrize("address", ["224.0.0.251", "255.255.255.255", "[ff02::fb]"])
def test_where_every_socket_gets_each_datagram_nothing_is_probed(address: str) -> None:
    called: list[str] = []
    shared = group(f"udp://{address}:5353")
    world = scene(DNS, shared, queue=0)
    world.tap = called.append
    report = go(world, shared)
    assert [str(shared) in warning for warning in report.warnings] == [True]
    assert called.count("offer") == 2  # before and after the switch of the other group


def test_nothing_listens_there() -> None:
    assert "127.0.0.1:80" in (refused(NotFound, scene(), group("10.0.0.1:80")).hint or "")
    refused(NotFound, scene(), group("127.0.0.1:81"))
    refused(NotFound, scene(), old_pids=(SHELL,))


@pytest.mark.parametrize("wrong", ["[::]:80", "0.0.0.0:80"])
def test_another_group_is_told_at_once(wrong: str) -> None:
    world = scene(behaviour=opens(group(wrong)))
    with pytest.raises(RolledBack, match="two groups") as caught:
        go(world)
    assert str(group(wrong)) in caught.value.message
    assert str(WEB) in caught.value.message
    assert world.now < 1002
    undone(world, False)


def test_a_further_group_is_no_fault() -> None:
    world = scene(behaviour=opens(group("[::1]:80"), WEB))
    assert go(world).result == "reloaded"


def test_another_port_is_named_at_the_end() -> None:
    world = scene(behaviour=opens(ADMIN))
    with pytest.raises(RolledBack, match="and not on"):
        go(world, start_timeout_s=2.0)


def test_a_number_of_listeners() -> None:
    world = scene(behaviour=opens(WEB, WEB, WEB))
    assert len(go(world, listeners=3).new.listeners) == 3
    world = scene(behaviour=opens(WEB, WEB))
    with pytest.raises(RolledBack, match="2 of 3"):
        go(world, listeners=3, start_timeout_s=1.0)
