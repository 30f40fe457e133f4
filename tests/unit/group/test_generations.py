"""Generations and slots over a kernel in memory: map add, map remove, map switch, flows, and what a reload does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from reuseport_tool.errors import Closed, Conflict, NotFound, UsageError
from reuseport_tool.group import attach, discover, flows, layout, places, slots
from reuseport_tool.group.choice import Element
from reuseport_tool.group.discover import PresentGroup
from reuseport_tool.group.layout import GENERATIONS
from reuseport_tool.group.pins import Pins
from reuseport_tool.group.policy import ChosenPolicy, FlowChoice
from reuseport_tool.group.state import State
from reuseport_tool.kernel import flow_map
from reuseport_tool.kernel.abi import FLOW_KEY, FLOW_WORD
from reuseport_tool.models import FlowMode, Policy, parse_endpoint
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import DNS, WEB
from tests.unit.group.fake.sockets import Sockets


@pytest.fixture
def old(kernel: Kernel) -> int:
    """The cookie of an attached listener of process 7."""
    cookie = kernel.listen(7)
    attach.attach(WEB, None, None, kernel.root)
    return cookie


def add(kernel: Kernel, **chosen: int | None) -> list[tuple[int | None, int | None, int | None]]:
    wanted = {"generation": None, "slot": None, "pid": None, "cookie": None} | chosen
    found = slots.add(WEB, kernel.root, **wanted)
    return [(change.generation, change.slot, change.cookie) for change in found.changes]


def test_add_takes_what_is_named(kernel: Kernel, old: int) -> None:
    by_pid, by_cookie, rest = kernel.listen(8), kernel.listen(9), kernel.listen(9)
    assert add(kernel, pid=8) == [(1, 1, by_pid)]
    assert add(kernel, cookie=by_cookie, generation=2, slot=3) == [(2, 3, by_cookie)]
    assert add(kernel) == [(1, 2, rest)]
    assert kernel.chosen() == {old, by_pid, rest}
    shown = {(entry.generation, entry.working): entry for entry in slots.list_maps(WEB, kernel.root).maps}
    assert [(slot.slot, slot.cookie) for slot in shown[2, False].slots] == [(3, by_cookie)]
    assert shown[2, False].members == 4
    assert shown[1, True].capacity == layout.CAPACITY_LEAST


def test_what_cannot_be_added(kernel: Kernel, old: int) -> None:
    with pytest.raises(NotFound, match="registered already"):
        add(kernel)
    with pytest.raises(NotFound, match="no listener with cookie 1 "):
        add(kernel, cookie=1)
    with pytest.raises(Conflict, match="in a sockarray already"):
        add(kernel, cookie=old)
    new = kernel.listen(8)
    with pytest.raises(Conflict, match="slot 0 is taken"):
        add(kernel, cookie=new, slot=0)
    with pytest.raises(UsageError, match="no slot 512"):
        add(kernel, cookie=new, slot=512)
    with pytest.raises(UsageError, match="not a generation: 0"):
        add(kernel, cookie=new, generation=0)
    with pytest.raises(NotFound, match="has no socket on"):
        add(kernel, pid=99)
    kernel.gone.add(98)
    with pytest.raises(NotFound, match="no process 98"):
        add(kernel, pid=98)
    kernel.listen(8)
    with pytest.raises(UsageError, match="2 listeners"):
        add(kernel, pid=8, slot=5)
    assert kernel.chosen() == {old}


def test_remove_and_switch(kernel: Kernel, old: int) -> None:
    new = kernel.listen(8)
    add(kernel, generation=2)
    assert kernel.chosen() == {old}
    slots.switch(WEB, kernel.root, generation=2, force=False)
    assert kernel.chosen() == {new}
    (change,) = slots.remove(WEB, kernel.root, generation=2, slot=0).changes
    assert change.cookie == new
    with pytest.raises(NotFound, match="slot 0 is empty"):
        slots.remove(WEB, kernel.root, generation=2, slot=0)
    with pytest.raises(NotFound) as caught:
        slots.switch(WEB, kernel.root, generation=3, force=False)
    assert caught.value.hint == "there are: 1, 2"
    slots.switch(WEB, kernel.root, generation=1, force=False)
    with pytest.raises(Conflict, match="no open listener"):
        slots.switch(WEB, kernel.root, generation=2, force=False)
    assert kernel.chosen() == {old}
    slots.switch(WEB, kernel.root, generation=2, force=True)
    assert kernel.chosen() == {old, new}, "an empty generation leaves the choice to the kernel"


def test_maps_of_nothing_of_several_and_of_damaged_groups(kernel: Kernel, old: int) -> None:
    other = parse_endpoint("127.0.0.2:80")
    with pytest.raises(NotFound, match="nothing of this tool"):
        slots.list_maps(other, kernel.root)
    kernel.listen(7, other)
    attach.attach(other, None, None, kernel.root)
    with pytest.raises(UsageError, match="means several groups"):
        slots.remove(parse_endpoint("80"), kernel.root, generation=1, slot=0)
    (places.group_folder(kernel.root, WEB) / "state" / "choice").unlink()
    found = slots.list_maps(None, kernel.root)
    assert [entry.endpoint for entry in found.maps] == [str(other)]
    assert "damaged" in found.damaged[0]
    with pytest.raises(Conflict, match="damaged"):
        slots.list_maps(WEB, kernel.root)
    with pytest.raises(NotFound, match="nothing of this tool is attached"):
        slots.switch(parse_endpoint("81"), kernel.root, generation=1, force=False)


def test_generations_beyond_the_most_take_the_place_of_ended_ones_only(kernel: Kernel, old: int) -> None:
    with State.open(places.group_folder(kernel.root, WEB)) as opened:
        made = opened.generations
        for number in range(2, GENERATIONS + 1):
            made.create(number)
            assert made.numbers() == [1, number], "empty ones go when the next one comes"
        with pytest.raises(Conflict, match=f"generation {GENERATIONS} exists"):
            made.create(GENERATIONS)
        with pytest.raises(Conflict, match="generation 1 still has listeners"):
            made.create(1 + GENERATIONS)
        assert made.next() == GENERATIONS + 1
        kernel.close(old)
        opened.choice.switch(GENERATIONS)
        made.create(1 + GENERATIONS)
        assert made.numbers() == [GENERATIONS, GENERATIONS + 1]
        with pytest.raises(NotFound, match="no generation 99"), made[99].sockarray():
            pass


def test_a_canary_has_its_share_until_the_switch(kernel: Kernel, old: int) -> None:
    kernel.listen(8)
    add(kernel, generation=2)
    with State.open(places.group_folder(kernel.root, WEB)) as opened:
        choice, elements = opened.choice, kernel.fds[opened.link()["CHOICE_FD"]].values
        assert choice.canary is None
        choice.share(2, 250)
        choice.share(2, 500)
        assert choice.canary == (2, 500)
        with choice.steered("10.0.0.1", 4000):
            assert elements[Element.STEERED_PORT] != bytes(4)
            assert elements[Element.STEERED_ADDRESS] == b"\x0a\0\0\1"
        assert elements[Element.STEERED_PORT] == bytes(4)
        choice.switch(2)
        assert choice.canary is None


def test_counters_are_sums_over_the_cpus(kernel: Kernel, old: int) -> None:
    with State.open(places.group_folder(kernel.root, WEB)) as opened:
        counters = kernel.fds[opened.link()["COUNTERS_FD"]]
        counters.values[0] = (5).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little")
        assert opened.counters().selected == 5 + (1 << 40)
        assert opened.counters().fallback == 0


def flow(source: bytes, port: int) -> bytes:
    return (source.ljust(16, b"\0") + b"\x7f\0\0\1".ljust(16, b"\0") + port.to_bytes(2, "big")).ljust(
        FLOW_KEY.size, b"\0"
    )


def test_flows_are_listed_last_seen_first(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.listen(7, DNS)
    with pytest.raises(NotFound, match="keeps flows"):
        flows.list_flows(DNS, kernel.root, None, 10)
    attach.attach(DNS, None, None, kernel.root, flows=FlowChoice(mode=FlowMode.ADDRESS, entries=16))
    monkeypatch.setattr("time.clock_gettime_ns", lambda _clock: 1000 << flow_map.UNIT_SHIFT)
    (recorded,) = (entry for entry in kernel.objects.values() if entry.name == "flows")
    recorded.values[flow(b"\x0a\0\0\1", 4000)] = FLOW_WORD.pack(100, 3, 1)
    recorded.values[flow(b"\x0a\0\0\2", 5000)] = FLOW_WORD.pack(990, 0, 2)
    recorded.values[flow(b"\x0a\0\0\3", 6000)] = FLOW_WORD.pack(1001, 1, 2)
    listed = flows.list_flows(DNS, kernel.root, None, 10).flows
    assert [(entry.source, entry.generation, entry.slot) for entry in listed] == [
        ("10.0.0.3:6000", 2, 1),
        ("10.0.0.2:5000", 2, 0),
        ("10.0.0.1:4000", 1, 3),
    ]
    assert listed[0].idle_s == 0.0, "seen while we look"
    assert listed[2].idle_s == pytest.approx(900 * (1 << flow_map.UNIT_SHIFT) / 1e9, abs=0.001)
    assert [entry.source for entry in flows.list_flows(DNS, kernel.root, 2, 1).flows] == ["10.0.0.3:6000"]


@pytest.mark.parametrize("number", [3, 3 + GENERATIONS, 65536 + 3])
def test_a_new_generation_has_no_flows_of_one_in_its_place(kernel: Kernel, number: int) -> None:
    """One that was rolled back had its number; the program knows a generation by its place."""
    kernel.listen(7, DNS)
    attach.attach(DNS, None, None, kernel.root, flows=FlowChoice(mode=FlowMode.ADDRESS, entries=16))
    (recorded,) = (entry for entry in kernel.objects.values() if entry.name == "flows")
    keys = {generation: flow(b"\x0a\0\0\1", 4000 + generation) for generation in (1, 2, 3, 3 + GENERATIONS)}
    recorded.values |= {key: FLOW_WORD.pack(0, 0, generation) for generation, key in keys.items()}
    with places.locked(kernel.root, DNS) as folder, State.open(folder) as opened:
        opened.generations.create(number)
    assert recorded.values.keys() == {keys[1], keys[2]}


@pytest.mark.parametrize(("generation", "wanted", "whether"), [(1, 65537, True), (1, 1, True), (1, 2, False)])
def test_a_flow_knows_16_bits_of_its_generation(generation: int, wanted: int, whether: bool) -> None:
    raw = flow_map.RawFlow(key=b"", generation=generation, slot=0, idle_s=0.0)
    assert (raw.is_of(wanted), raw.is_of(None)) == (whether, False)


@pytest.fixture
def pins(kernel: Kernel) -> Iterator[Pins]:
    with (
        places.locked(kernel.root, WEB) as folder,
        ChosenPolicy(None, None) as chosen,
        Sockets(kernel).listeners_of(WEB.protocol) as listeners,
        Pins({WEB: folder}, chosen, listeners, chosen) as made,
    ):
        yield made


def members(cookies: set[int]) -> PresentGroup:
    group = discover.present(WEB)
    return replace(group, members=tuple(member for member in group.members if member.socket.cookie in cookies))


def test_the_verbs_of_a_reload(kernel: Kernel, pins: Pins) -> None:
    old, new = kernel.listen(7), kernel.listen(8)
    assert pins.counters(WEB) is None
    with pytest.raises(NotFound):
        pins.working(WEB)
    assert not pins.running(WEB).ours
    assert pins.attach(WEB, members({old}).members).working == 1
    assert pins.running(WEB).ours
    assert kernel.chosen() == {old}
    pins.make(WEB, 2)
    pins.put(WEB, 2, members({new}).members)
    pins.share(WEB, 2, 12.5)
    assert (kernel.chosen(), pins.canary(WEB), pins.cookies(WEB, 2)) == ({old}, (2, 12.5), {new})
    pins.switch(WEB, 2)
    assert (kernel.chosen(), pins.working(WEB), pins.generations(WEB)) == ({new}, 2, (1, 2))
    pins.put(WEB, 1, members({new}).members)
    assert (pins.cookies(WEB, 1), pins.cookies(WEB, 9)) == ({old, new}, frozenset())
    pins.take_out(WEB, [old])
    pins.switch(WEB, 1)
    pins.remove(WEB, 2)
    assert (kernel.chosen(), pins.generations(WEB)) == ({new}, (1,))
    pins.detach(WEB)
    assert kernel.running == {}
    assert pins.counters(WEB) is None


def test_listeners_that_close_after_they_were_seen(kernel: Kernel, pins: Pins) -> None:
    old, new = kernel.listen(7), kernel.listen(8)
    seen_old, seen_new = members({old}).members, members({new}).members
    pins.attach(WEB, seen_old)
    pins.make(WEB, 2)
    kernel.close(old)
    assert pins.attach(WEB, seen_old).working == 1
    kernel.close(new)
    pins.put(WEB, 2, seen_new)
    assert pins.cookies(WEB, 2) == frozenset()


def test_nothing_is_attached_to_listeners_that_have_closed(kernel: Kernel, pins: Pins) -> None:
    seen = members({kernel.listen(7)}).members
    kernel.close(*(member.cookie for member in seen))
    with pytest.raises(Closed):
        pins.attach(WEB, seen)
    assert pins.counters(WEB) is None


def test_a_program_of_somebody_else_is_seen_and_not_detached(kernel: Kernel, pins: Pins) -> None:
    kernel.listen(7)
    pins.attach(WEB, discover.present(WEB).members)
    theirs = kernel.foreign()
    pins.attach(WEB, [])
    running = pins.running(WEB)
    assert (running.ours, running.program_id) == (False, theirs)
    pins.attach_again(WEB)
    assert pins.running(WEB).ours
    kernel.running[WEB, 0] = theirs
    pins.attach(WEB, [])  # forgets the look of a moment ago
    pins.detach(WEB)
    assert kernel.running == {(WEB, 0): theirs}


def test_a_spare_program_that_no_group_took_is_closed(kernel: Kernel) -> None:
    with ChosenPolicy(Policy.HASH, None) as chosen:
        chosen.prepare()
        assert kernel.fds
    assert not kernel.fds
    kernel.listen(7)
    with ChosenPolicy(Policy.HASH, None) as chosen:
        chosen.prepare()
        made = len(kernel.objects)
        attach.attach(WEB, Policy.HASH, None, kernel.root)
        assert len(kernel.objects) > made
