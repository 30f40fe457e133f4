"""The rules of a reload, one by one, in a world in memory."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError, Unsupported, UsageError
from reuseport_tool.models import Strategy
from reuseport_tool.reload import survey, transaction
from reuseport_tool.reload.plan import Plan
from reuseport_tool.reload.state import ReloadState, decode, encode
from reuseport_tool.reload.thresholds import Threshold
from tests.unit.reload.fake.records import FOREIGN, OLD, OPTIONS, SHELL, TOOL, WEB, Pin, Proc, group
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import (
    ADMIN,
    TLS,
    daemon,
    exits,
    go,
    opens,
    others,
    outcome,
    scene,
    served_by,
    settled,
    silent,
    undone,
)


def refused(kind: type[ToolError], world: FakeWorld, *endpoints: Any, **how: Any) -> ToolError:
    """The reload is refused before anything is started or signalled."""
    with pytest.raises(kind) as caught:
        go(world, *endpoints, **how)
    assert not others(world)
    assert not world.signals
    assert world.journal is None
    return caught.value


# a server is processes, not a port


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


DNS, DNS6 = group("udp://127.0.0.1:53"), group("udp://[::1]:53")


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


# new is what is tied to the new side


def test_a_daemon_is_ours() -> None:
    world = scene(behaviour=daemon)
    assert go(world).result == "reloaded"
    settled(world, 5)


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


# same identity


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


# instances


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


# nothing but the transaction decides


def test_a_failing_health_check() -> None:
    for how in ({"health_command": "check"}, {"health_url": "http://127.0.0.1/"}, {"canary": (5.0,), "step_s": 0.1}):
        world = scene(behaviour=opens(accepts=False, queue=1) if "canary" in how else None)
        world.failing_hooks = {"check"}
        world.url_answers = "health_url" not in how
        with pytest.raises(RolledBack):
            go(world, health_timeout_s=0.5, **how)
        assert OLD in world.procs
        assert not others(world)


def test_a_counter_that_grows() -> None:
    world = scene()

    def lose() -> None:
        world.lost = 7

    world.later(1.0, lose)
    with pytest.raises(RolledBack, match="resets grew by 7"):
        go(world, canary=(10.0,), step_s=3.0, abort_on=(Threshold(counter="resets", limit=5),))


def test_options_that_differ() -> None:
    for field, unsafe in (("save_syn", True), ("no_delay", False)):
        options = dataclasses.replace(OPTIONS, **{field: 1})
        world = scene(behaviour=opens(options=options))
        if unsafe:
            with pytest.raises(RolledBack, match=field):
                go(world)
            undone(world, False)
            world = scene(behaviour=opens(options=options))
        report = go(world, force=True)
        assert any(field in warning for warning in report.warnings)


# the end of the old side


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


# the program stays ours


@pytest.mark.parametrize("attached", [False, True])
def test_a_new_server_with_a_program_of_its_own(attached: bool) -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        opens()(world, pid)
        world.later(0.3, lambda: world.programs.update({WEB: 0}))

    world = scene(behaviour=behave, attached=attached)
    with pytest.raises(RolledBack, match="classic BPF"):
        go(world)
    undone(world, attached)


@pytest.mark.parametrize("strategy", [Strategy.MIGRATE, Strategy.SYSCTL])
def test_a_foreign_program(strategy: Strategy) -> None:
    world = scene()
    world.programs[WEB] = FOREIGN
    _, error = outcome(lambda: go(world, strategy=strategy))
    if strategy is Strategy.SYSCTL:
        settled(world, 5)
        assert world.programs[WEB] == FOREIGN
    else:
        assert isinstance(error, Conflict)


def test_the_sysctl_beside_our_own_program() -> None:
    refused(Conflict, scene(attached=True), strategy=Strategy.SYSCTL)


def test_a_program_that_is_replaced_after_the_stop() -> None:
    world = scene()
    world.procs[OLD].on_term = lambda: (world.programs.update({WEB: FOREIGN}), world.end(OLD))  # type: ignore[assignment]
    result, error = outcome(lambda: go(world))
    assert (result, type(error)) == ("reloaded", ToolError)


# the end is looked at


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


# --run


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


# strategies, states and trials


def test_drain_waits_and_gives_up() -> None:
    world = scene()
    world.later(1.0, lambda: setattr(world.socks[1], "accepts", True))
    assert go(world, strategy=Strategy.DRAIN).result == "reloaded"
    assert world.answered[OLD] == 5
    world = scene()
    with pytest.raises(RolledBack, match="5 queued"):
        go(world, strategy=Strategy.DRAIN, drain_timeout_s=1.0)
    world = scene()
    world.sees_kernel = False
    with pytest.raises(RolledBack) as caught:
        go(world, strategy=Strategy.DRAIN)
    assert isinstance(caught.value.__cause__, Unsupported)


def test_what_cannot_be_seen_is_unknown() -> None:
    world = scene()
    world.sees_kernel = False
    report = go(world)
    assert report.balance is None
    assert report.queued_at_stop.half_open is None


def test_the_balance_adds_up() -> None:
    balance = go(scene()).balance
    assert (balance.waiting, balance.moved, balance.old_side, balance.lost, balance.half_open) == (5, 5, 0, 0, 0)


def state() -> ReloadState:
    world = scene()
    made = world.world()
    plan = Plan(command=("new",))
    return transaction.begun([WEB], plan, Strategy.MIGRATE, survey.survey([WEB], plan, made), made)


def test_a_state_outlives_its_process() -> None:
    assert decode(encode(state())) == state()
    with pytest.raises(Conflict):
        decode(b"{}")


def test_a_reload_that_was_being_undone_is_not_resumed() -> None:
    with pytest.raises(Conflict):
        transaction.resumed(dataclasses.replace(state(), step="roll back"), scene().world())


@pytest.mark.parametrize("gone", [False, True])
def test_what_cannot_be_aborted(gone: bool) -> None:
    world = scene()
    found = state()
    if gone:
        world.end(OLD)
    else:
        found = dataclasses.replace(found, stop_asked=True)
    with pytest.raises(Conflict, match="no way back"):
        transaction.aborted(found, world.world())


def test_a_trial_tells_what_would_be_done() -> None:
    tried = state()
    world = scene()
    plan = transaction.planned(tried, world.world(), None, ["slow"])
    assert (plan.code, plan.stop, plan.pids, plan.warnings) == (0, "SIGTERM", (OLD,), ("slow",))
    plan = transaction.planned(tried, world.world(), Conflict("no", hint="do"), [])
    assert (plan.code, plan.refusal, plan.hint) == (7, "no", "do")
    by_itself = dataclasses.replace(tried, plan=Plan(run="restart"))
    assert "restart" in transaction.planned(by_itself, world.world(), None, []).stop


def test_two_reloads_after_each_other() -> None:
    world = scene()
    go(world)
    settled(world, 5)
    world.behaviour = opens()
    assert go(world).new.generation == 3
    assert Pin().working == 1


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
