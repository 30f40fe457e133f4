"""attach, attach --repair and detach over a kernel in memory: who gets new connections, what is pinned, what fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from reuseport_tool.errors import Conflict, NotFound, ProgramRejected, ToolError, Unsupported, UsageError
from reuseport_tool.group import attach, detach, journals, places, repair, status
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.group.state import State
from reuseport_tool.kernel import netns
from reuseport_tool.models import Attached, Endpoint, FlowMode, Group, Policy, Protocol, parse_endpoint
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import DNS, WEB


def attached(kernel: Kernel, endpoint: Endpoint = WEB, policy: Policy | None = None, **how: object) -> Attached:
    (report,) = attach.attach(endpoint, policy, None, kernel.root, **how).attached  # type: ignore[arg-type]
    return report


def shown(kernel: Kernel, endpoint: Endpoint = WEB) -> Group:
    with status.Observer(endpoint, kernel.root) as observer:
        (group,) = observer.read().groups
    return group


def folder(kernel: Kernel, endpoint: Endpoint = WEB) -> Path:
    return Path(str(places.group_folder(kernel.root, endpoint)))


def test_attach_registers_every_listener_in_the_kernels_order(kernel: Kernel) -> None:
    cookies = [kernel.listen(pid) for pid in (7, 8, 9)]
    report = attached(kernel)
    assert (report.result, report.program.policy, report.generation) == ("attached", "hash", 1)
    assert report.registered == tuple(cookies)
    assert kernel.chosen() == set(cookies)
    group = shown(kernel)
    assert [(entry.cookie, entry.generation, entry.slot, entry.flag, entry.pid) for entry in group.listeners] == [
        (cookie, 1, slot, "working", pid) for slot, (cookie, pid) in enumerate(zip(cookies, (7, 8, 9), strict=True))
    ]
    assert group.program == report.program
    assert group.problems == ()


def test_attach_again_changes_nothing_but_takes_in_new_listeners(kernel: Kernel) -> None:
    kernel.listen(7)
    first = attached(kernel)
    assert attached(kernel).result == "unchanged"
    late = kernel.listen(8)
    assert late not in kernel.chosen()
    again = attached(kernel)
    assert (again.result, again.registered, again.program.id) == ("unchanged", (late,), first.program.id)
    assert late in kernel.chosen()


def test_another_policy_takes_the_place_of_the_program_and_keeps_the_generations(kernel: Kernel) -> None:
    cookie = kernel.listen(7)
    first = attached(kernel)
    second = attached(kernel, policy=Policy.ROUND_ROBIN)
    assert (second.result, second.program.policy, second.generation) == ("replaced", "round-robin", 1)
    assert second.program.id != first.program.id
    assert kernel.running[WEB, 0] == second.program.id
    assert kernel.chosen() == {cookie}
    assert attached(kernel, policy=Policy.ROUND_ROBIN).result == "unchanged"


def test_a_rejected_policy_leaves_the_old_one(kernel: Kernel, tmp_path: Path) -> None:
    kernel.listen(7)
    before = attached(kernel)
    source = tmp_path / "bad.c"
    source.touch()
    with pytest.raises(ProgramRejected):
        attach.attach(WEB, None, source, kernel.root)
    assert shown(kernel).program == before.program
    with pytest.raises(UsageError, match="no such file"):
        attach.attach(WEB, None, tmp_path / "missing.c", kernel.root)
    odd = tmp_path / "not-an-identifier.c"
    odd.touch()
    with pytest.raises(UsageError, match="cannot name a program"):
        attach.attach(WEB, None, odd, kernel.root)


def test_when_all_registered_listeners_have_closed_a_new_generation_begins(kernel: Kernel) -> None:
    old = kernel.listen(7)
    attached(kernel)
    new = kernel.listen(8)
    kernel.close(old)
    report = attached(kernel)
    assert (report.generation, report.registered) == (2, (new,))
    assert kernel.chosen() == {new}


def test_pins_of_an_ended_server_are_no_obstacle(kernel: Kernel) -> None:
    kernel.close(*[cookie for cookie in [kernel.listen(7)] if attached(kernel)])
    assert shown_or_none(kernel) is not None
    new = kernel.listen(8)
    assert attached(kernel).result == "attached"
    assert kernel.chosen() == {new}


def shown_or_none(kernel: Kernel) -> Group | None:
    with status.Observer(None, kernel.root) as observer:
        groups = observer.read().groups
    return groups[0] if groups else None


@pytest.mark.parametrize("is_filter", [False, True])
def test_a_foreign_program_is_never_touched(kernel: Kernel, is_filter: bool) -> None:
    kernel.listen(7)
    theirs = 0 if is_filter else kernel.foreign()
    kernel.running[WEB, 0] = theirs
    with pytest.raises(Conflict, match="classic BPF filter" if is_filter else "name 'theirs'"):
        attached(kernel)
    assert kernel.running[WEB, 0] == theirs
    assert kernel.pinned() == []
    assert shown(kernel).program.policy is None
    with pytest.raises(NotFound):
        detach.detach(WEB, kernel.root)
    assert kernel.running[WEB, 0] == theirs


def test_listeners_that_cannot_be_a_group(kernel: Kernel) -> None:
    kernel.listen(7, reuseport=False)
    with pytest.raises(ToolError, match="does not have SO_REUSEPORT"):
        attached(kernel)
    mptcp = parse_endpoint("127.0.0.1:81")
    kernel.listen(7, mptcp, mptcp=True)
    with pytest.raises(Unsupported, match="MPTCP"):
        attached(kernel, mptcp)
    with pytest.raises(NotFound) as caught:
        attached(kernel, parse_endpoint("127.0.0.9:81"))
    assert "127.0.0.1:81" in caught.value.hint
    with pytest.raises(UsageError, match="--flows is for UDP"):
        attached(kernel, flows=FlowChoice(mode=FlowMode.ADDRESS))
    assert kernel.pinned() == []


def test_a_listener_that_no_process_holds(kernel: Kernel) -> None:
    kernel.listen(0)
    with pytest.raises(NotFound, match="no process holds the listener"):
        attached(kernel)
    assert kernel.pinned() == []
    assert kernel.running == {}


def test_one_of_several_groups_fails_and_the_error_says_what_was_done(kernel: Kernel) -> None:
    kernel.listen(7, parse_endpoint("127.0.0.1:80"))
    kernel.listen(7, parse_endpoint("127.0.0.2:80"))
    kernel.foreign(parse_endpoint("127.0.0.2:80"))
    with pytest.raises(Conflict) as caught:
        attach.attach(parse_endpoint("80"), None, None, kernel.root)
    assert [entry.endpoint for entry in caught.value.report.attached] == ["tcp://127.0.0.1:80"]
    assert shown(kernel).program.policy == "hash"


def test_every_part_of_a_group_that_has_split_gets_the_program(kernel: Kernel) -> None:
    kernel.listen(7, DNS)
    kernel.listen(8, DNS, part=1)
    attached(kernel, DNS)
    assert kernel.running[DNS, 0] == kernel.running[DNS, 1]
    kernel.listen(9, DNS, part=2)
    assert attached(kernel, DNS).result == "attached"
    assert kernel.running[DNS, 2] == kernel.running[DNS, 0]
    detach.detach(DNS, kernel.root)
    assert kernel.running == {}


def test_flows_come_and_go_with_their_maps(kernel: Kernel) -> None:
    kernel.listen(7, DNS)
    attached(kernel, DNS, flows=FlowChoice(mode=FlowMode.ADDRESS, entries=64))
    table = shown(kernel, DNS).flows
    assert (table.mode, table.capacity, table.flows) == (FlowMode.ADDRESS, 64, 0)
    assert attached(kernel, DNS).result == "unchanged"
    assert attached(kernel, DNS, flows=FlowChoice(mode=FlowMode.NONE)).result == "replaced"
    assert shown(kernel, DNS).flows is None
    assert not any(name.endswith(("/flows", "/flow_counters")) for name in kernel.pinned())
    assert attached(kernel, DNS, flows=FlowChoice(mode=FlowMode.ADDRESS, entries=8)).result == "replaced"
    assert shown(kernel, DNS).flows.capacity == 8
    assert kernel.chosen(DNS) == set(kernel.socks)


def test_detach_leaves_nothing(kernel: Kernel) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    attached(kernel)
    (report,) = detach.detach(WEB, kernel.root).detached
    assert report.result == "detached"
    assert kernel.running == {}
    assert list(kernel.root.iterdir()) == []
    assert kernel.chosen() == cookies
    with pytest.raises(NotFound):
        detach.detach(WEB, kernel.root)
    assert attached(kernel).result == "attached", "the slots of before do not keep the listeners"


@pytest.mark.parametrize("may_iterate", [True, False])
def test_detach_where_the_kernel_does_not_tell_what_runs(kernel: Kernel, may_iterate: bool) -> None:
    kernel.listen(7)
    attached(kernel)
    kernel.tells, kernel.may_iterate = False, may_iterate
    assert detach.detach(WEB, kernel.root).detached[0].result == "detached"
    assert kernel.running == {}


def test_detach_all_and_pins_alone(kernel: Kernel) -> None:
    web, dns = kernel.listen(7), kernel.listen(7, DNS)
    attached(kernel)
    attached(kernel, DNS)
    kernel.close(web)
    results = {entry.endpoint: entry.result for entry in detach.detach_all(kernel.root).detached}
    assert results == {str(WEB): "cleaned", str(DNS): "detached"}
    assert kernel.socks.keys() == {dns}
    assert detach.detach_all(kernel.root).detached == ()


def test_a_program_that_took_our_place_is_left_and_others_are_detached_all_the_same(kernel: Kernel) -> None:
    first, second = parse_endpoint("127.0.0.1:80"), parse_endpoint("127.0.0.2:80")
    for endpoint in (first, second):
        kernel.listen(7, endpoint)
    attach.attach(parse_endpoint("80"), None, None, kernel.root)
    theirs = kernel.foreign(first)
    with pytest.raises(Conflict, match="is not this tool's") as caught:
        detach.detach(parse_endpoint("80"), kernel.root)
    assert [entry.endpoint for entry in caught.value.report.detached] == [str(second)]
    assert kernel.running == {(first, 0): theirs}


def test_lost_pins_are_told_and_made_anew(kernel: Kernel) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    before = attached(kernel)
    for path in folder(kernel).rglob("*"):
        if path.is_file():
            path.unlink()
    (folder(kernel) / "state").rmdir()
    assert "pins of the program" in shown(kernel).damage
    with pytest.raises(Conflict) as caught:
        attached(kernel)
    assert "--repair" in caught.value.hint
    (report,) = repair.repair(WEB, kernel.root).attached
    assert (report.result, report.program, report.registered) == ("repaired", before.program, ())
    assert shown(kernel).damage is None
    assert kernel.chosen() == cookies
    assert repair.repair(WEB, kernel.root).attached[0].result == "unchanged"


@pytest.mark.parametrize("lost", ["choice", "members", "program", "generation_1"])
def test_one_lost_pin_is_damage_that_repair_mends(kernel: Kernel, lost: str) -> None:
    cookie = kernel.listen(7)
    attached(kernel)
    (folder(kernel) / "state" / lost).unlink()
    if lost != "generation_1":
        assert "damaged" in shown(kernel).damage
    assert repair.repair(WEB, kernel.root).attached[0].result == "repaired"
    group = shown(kernel)
    assert (group.damage, group.listeners[0].generation) == (None, 1)
    assert kernel.chosen() == {cookie}


def test_detach_without_pins_takes_our_program_off(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    for path in [*folder(kernel).rglob("*")]:
        if path.is_file():
            path.unlink()
    assert detach.detach(WEB, kernel.root).detached[0].result == "detached"
    assert kernel.running == {}
    assert attached(kernel).result == "attached"


def test_another_users_program_is_not_taken_over(kernel: Kernel) -> None:
    kernel.listen(7)
    running = attached(kernel).program.id
    (folder(kernel) / "state" / "choice").unlink()
    kernel.objects[running].uid = os.geteuid() + 1
    with pytest.raises(Conflict, match="could still change its maps"):
        repair.repair(WEB, kernel.root)


def test_repair_needs_a_kernel_that_tells(kernel: Kernel) -> None:
    kernel.listen(7)
    kernel.tells = False
    with pytest.raises(Unsupported):
        repair.repair(WEB, kernel.root)


@pytest.mark.parametrize(("newest", "numbers"), [(1, {1: 1}), (17, {1: 17, 2: 2, 0: 16}), (40, {8: 40, 9: 25})])
def test_generations_get_their_numbers_back(newest: int, numbers: dict[int, int]) -> None:
    assert {index: repair.number_of(index, newest) for index in numbers} == numbers


@pytest.mark.parametrize("adopted", [True, False])
def test_a_replacement_that_was_killed_between_its_steps_is_settled(kernel: Kernel, adopted: bool) -> None:
    """The new program is pinned beside the old one; it may run already."""
    kernel.listen(7)
    old = attached(kernel).program.id

    def die(name: str) -> None:
        if name == "attach":
            raise KeyboardInterrupt

    kernel.before_change = die
    with pytest.raises(KeyboardInterrupt):
        attached(kernel, policy=Policy.ROUND_ROBIN)
    kernel.before_change = lambda name: None
    following = folder(kernel) / "state" / "program_next"
    new = int(following.read_text())
    if adopted:
        kernel.running[WEB, 0] = new
    assert attached(kernel).program.id == (new if adopted else old)
    assert not following.exists()


def test_an_interrupted_reload_is_shown_and_blocks_all_but_detach(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    with places.locked(kernel.root, WEB) as group:
        head = journals.Header(sequence=1, pid=77, begun_at=5.0, step="stop")
        journals.write([group], head, b"x" * 40_000)
        assert journals.read(group).text == b"x" * 40_000
        assert journals.is_running(group)
    transaction = shown(kernel).reload
    assert (transaction.running, transaction.step, transaction.pid) == (False, "stop", 77)
    for verb in (lambda: attached(kernel), lambda: repair.repair(WEB, kernel.root)):
        with pytest.raises(Conflict, match="was interrupted"):
            verb()
    detach.detach(WEB, kernel.root)
    assert list(kernel.root.iterdir()) == []


def test_a_journal_of_somebody_else_is_not_read(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    os.link(folder(kernel) / "state" / "choice", folder(kernel) / "journal")
    with pytest.raises(Conflict, match="is not this tool's"):
        journals.read(places.group_folder(kernel.root, WEB))


def test_a_lock_that_is_held_is_respected(kernel: Kernel) -> None:
    kernel.listen(7)
    with (
        places.locked(kernel.root, WEB),
        pytest.raises(Conflict, match=f"process {os.getpid()}"),
        places.locked(kernel.root, WEB, at_once=True),
    ):
        pass
    assert list(kernel.root.iterdir()) == []


def test_pins_of_namespaces_that_are_gone(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = kernel.listen(7)
    attached(kernel)
    home = folder(kernel).parent
    home.rename(home.parent / "4026999999_5")
    monkeypatch.setattr(netns, "keys", lambda: {netns.key()})
    assert detach.detach_gone(kernel.root).detached == (), "a listener is open: the namespace lives on"
    kernel.close(cookie)
    with status.Observer(None, kernel.root) as observer:
        (gone,) = observer.read().gone
    assert (gone.endpoint, gone.netns) == (str(WEB), "net:[4026999999]")
    (report,) = detach.detach_gone(kernel.root).detached
    assert (report.endpoint, report.result) == (str(WEB), "gone")
    assert list(kernel.root.iterdir()) == []


def changes(kernel: Kernel, policy: Policy | None = None) -> int:
    """How many changes an attach of two listeners takes."""
    made: list[str] = []
    kernel.before_change = made.append
    attached(kernel, policy=policy)
    kernel.before_change = lambda name: None
    return len(made)


def fail_at(kernel: Kernel, number: int) -> None:
    left = [number]

    def count(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOMEM, "out of memory")

    kernel.before_change = count


@pytest.mark.parametrize("again", [False, True])
def test_an_error_at_any_change_leaves_every_listener_served_and_is_mended_by_the_next_attach(
    kernel: Kernel, again: bool
) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    total = changes(kernel)
    if again:
        total = changes(kernel, Policy.ROUND_ROBIN)
    assert total > (1 if again else 10)
    for number in range(1, total + 1):
        detach.detach(WEB, kernel.root)
        if again:
            attached(kernel)
        fail_at(kernel, number)
        policy = Policy.ROUND_ROBIN if again else None
        with pytest.raises((OSError, ToolError)):
            attached(kernel, policy=policy)
        kernel.before_change = lambda name: None
        assert kernel.chosen() == cookies
        report = attached(kernel, policy=policy)
        assert (report.program.policy, kernel.chosen()) == ("round-robin" if again else "hash", cookies)
        assert shown(kernel).problems == ()
        assert not kernel.fds


def test_state_of_nothing(kernel: Kernel) -> None:
    with pytest.raises(NotFound, match="no program of this tool"):
        State.open(places.group_folder(kernel.root, WEB))
    with status.Observer(WEB, kernel.root) as observer, pytest.raises(NotFound):
        observer.read()
    with status.Observer(None, kernel.root) as observer:
        assert observer.read().groups == ()


def test_a_single_udp_socket_is_a_client_where_the_kernel_does_not_tell(kernel: Kernel) -> None:
    kernel.listen(7, DNS)
    kernel.tells = False
    assert shown_or_none(kernel) is None
    kernel.listen(8, DNS)
    group = shown_or_none(kernel)
    assert group is not None
    assert (group.reuseport, [entry.drops for entry in group.listeners]) == (None, [None, None])
    kernel.tells = True
    assert [entry.drops for entry in shown(kernel, DNS).listeners] == [3, 3]
    assert Endpoint(protocol=Protocol.UDP, address="127.0.0.1", port=53) == DNS
