"""attach over a kernel in memory: who gets new connections, what is pinned, what fails, what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from reuseport_tool.errors import Conflict, NotFound, ProgramRejected, ToolError, Unsupported, UsageError
from reuseport_tool.group import attach, detach, places, status
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.group.state import State
from reuseport_tool.models import Endpoint, FlowMode, Policy, Protocol, parse_endpoint
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import DNS, WEB
from tests.unit.group.verbs import attached, shown, shown_or_none


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
