"""What is left on the old side of a UDP group: flows that are alive, and sockets that it connected to a client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.models import FlowMode
from reuseport_tool.reload.steps.quiet import _Flows, _Quiet
from reuseport_tool.reload.world import KeptFlows

TIMEOUT_S = 30.0
OLD, NEW = 1, 2
OURS, THEIRS = 10, 20


class Scene:
    """Flows by their key: generation and idle seconds. Connected sockets: cookie and the process that holds it."""

    def __init__(self, mode: FlowMode, kept: KeptFlows | None = None) -> None:
        self.now_s = 100.0
        self.flows: dict[bytes, tuple[int, float]] = {}
        self.slot = 0
        self.is_crowded = False
        self.connected: dict[int, int] = {}
        self.open_slots = {0, 1}
        tree = SimpleNamespace(running=lambda side: side, below=lambda pids: pids)
        world: Any = SimpleNamespace(
            clock=SimpleNamespace(now_s=lambda: self.now_s),
            datagrams=SimpleNamespace(
                flows=self._flows,
                connected=self._connected,
                kept_flows=lambda _: kept,
                is_crowded=lambda _: self.is_crowded,
                open_slots=lambda _group, _generation: self.open_slots,
            ),
            processes=SimpleNamespace(tree=lambda: tree),
            listeners=SimpleNamespace(with_holders=self._with_holders),
        )
        group: Any = SimpleNamespace(endpoint="udp://127.0.0.1:443", flows=mode, old_generation=OLD)
        state: Any = SimpleNamespace(
            plan=SimpleNamespace(flow_timeout_s=TIMEOUT_S), old_side=(SimpleNamespace(pid=OURS),)
        )
        self.watch = _Flows(group, state, world)

    def _flows(self, _group: object) -> list[RawFlow]:
        return [
            RawFlow(key=key, generation=generation, slot=self.slot, idle_s=idle_s)
            for key, (generation, idle_s) in self.flows.items()
        ]

    def _connected(self, _group: object) -> list[Any]:
        return [SimpleNamespace(cookie=cookie) for cookie in self.connected]

    def _with_holders(self, entries: list[Any], side: set[int]) -> list[Any]:
        return [
            SimpleNamespace(cookie=each.cookie, holders=[pid for pid in (self.connected[each.cookie],) if pid in side])
            for each in entries
        ]

    def look(self, flows: dict[bytes, tuple[int, float]] | None = None) -> int:
        """A second later, when these flows are there."""
        if flows is not None:
            self.flows = flows
        self.now_s += 1
        return self.watch.look()


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
def test_flows_end_when_nothing_comes_for_the_time(mode: FlowMode) -> None:
    scene = Scene(mode)
    assert scene.look({b"a": (OLD, 1.0), b"b": (OLD, TIMEOUT_S + 5), b"c": (NEW, 0.0)}) == 1
    scene.flows[b"a"] = (OLD, TIMEOUT_S + 5)
    assert (scene.look(), len(scene.watch.evicted)) == (0, 0)


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
def test_a_flow_that_the_kernel_forgot_is_evicted(mode: FlowMode) -> None:
    scene = Scene(mode)
    scene.look({b"a": (OLD, 1.0)})
    assert (scene.look({}), len(scene.watch.evicted)) == (0, 1)


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
def test_what_was_evicted_between_the_switch_and_the_drain_counts(mode: FlowMode) -> None:
    flows = [(b"a", OLD, 1.0), (b"b", OLD, TIMEOUT_S + 5), (b"c", NEW, 0.0)]
    seen = tuple(RawFlow(key=key, generation=generation, slot=0, idle_s=idle_s) for key, generation, idle_s in flows)
    scene = Scene(mode, KeptFlows(seen_s=99.0, flows=seen))
    assert (scene.look(), scene.watch.forgotten) == (0, 1)


def test_a_resumed_run_does_not_know_what_was_evicted_before_it() -> None:
    scene = Scene(FlowMode.ADDRESS)
    assert (scene.look({}), scene.watch.forgotten) == (0, None)


def test_a_flow_that_is_recorded_anew_was_evicted_before() -> None:
    scene = Scene(FlowMode.ADDRESS)
    scene.look({b"a": (OLD, 1.0)})
    scene.look({b"a": (NEW, 0.0)})
    assert len(scene.watch.evicted) == 1


def test_a_connection_that_its_id_brought_back_is_not_evicted() -> None:
    scene = Scene(FlowMode.QUIC)
    scene.look({b"a": (OLD, 1.0)})
    scene.look({})
    assert (scene.look({b"a": (OLD, 0.0)}), len(scene.watch.evicted)) == (1, 0)


def test_a_connection_that_came_back_to_another_worker_is_evicted() -> None:
    scene = Scene(FlowMode.QUIC)
    scene.look({b"a": (OLD, 1.0)})
    scene.look({})
    scene.slot = 1
    assert (scene.look({b"a": (OLD, 0.0)}), scene.watch.forgotten) == (1, None)
    assert len(scene.watch.evicted) == 1


@pytest.mark.parametrize("is_crowded", [False, True])
def test_between_two_looks_another_worker_may_get_an_address(is_crowded: bool) -> None:
    """Of a connection that was forgotten, if the map is crowded, else of another one."""
    scene = Scene(FlowMode.QUIC)
    scene.is_crowded = is_crowded
    scene.look({b"a": (OLD, 1.0)})
    scene.slot = 1
    assert scene.look({b"a": (OLD, 0.0)}) == 1
    assert len(scene.watch.evicted) == is_crowded


def test_an_address_that_a_newer_connection_has_taken_is_not_evicted() -> None:
    scene = Scene(FlowMode.QUIC)
    scene.look({b"a": (OLD, 1.0)})
    assert (scene.look({b"a": (NEW, 0.0)}), len(scene.watch.evicted)) == (0, 0)


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
@pytest.mark.parametrize("comes_back", [False, True])
def test_flows_of_a_socket_that_the_old_server_closed_are_lost_and_not_awaited(
    mode: FlowMode, comes_back: bool
) -> None:
    scene = Scene(mode)
    scene.look({b"a": (OLD, 1.0), b"b": (OLD, TIMEOUT_S + 5)})
    scene.open_slots = set()
    left = (NEW, 0.0) if comes_back else (OLD, 2.0)
    assert scene.look({b"a": left, b"b": (OLD, TIMEOUT_S + 6)}) == 0
    assert scene.look() == 0
    assert (scene.watch.closed, scene.watch.evicted) == ({b"a"}, {})


def test_connected_sockets_of_the_old_side_are_waited_for() -> None:
    scene = Scene(FlowMode.QUIC)
    scene.connected = {1: OURS, 2: THEIRS}
    assert scene.look() == 1
    assert scene.watch.shown() == "1 connected sockets"
    scene.connected[3] = OURS
    assert scene.look() == 2
    scene.connected = {2: THEIRS}
    assert scene.look() == 0


class Server:
    """A server with one socket, which is looked at once in a tenth of a second."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.unread, self.packets, self.is_held_up = 0, 0, False
        world: Any = SimpleNamespace(
            clock=SimpleNamespace(now_s=lambda: self.now_s),
            datagrams=SimpleNamespace(
                sockets=lambda: {1: SimpleNamespace(receive_queue=self.unread)},
                sent=lambda: {1: SimpleNamespace(packets=self.packets)},
            ),
            processes=SimpleNamespace(are_held_up=lambda _: self.is_held_up),
        )
        state: Any = SimpleNamespace(plan=SimpleNamespace(settle_s=0.55, run=None))
        self.quiet = _Quiet({1}, (), state, world)
        self.quiet.reached()

    def looks(self) -> int:
        """How many looks it takes until the server is quiet."""
        for count in range(1, 100):
            self.now_s += 0.1
            if self.quiet.reached():
                return count
        return 100


def test_quiet_is_who_has_read_all_and_sent_nothing_for_a_while() -> None:
    assert Server().looks() == 6
    server = Server()
    server.unread = 1
    assert server.looks() == 100
    server.unread, server.packets = 0, 7
    assert server.looks() == 7  # the first of them sees what was sent


def test_time_without_a_cpu_is_no_time_without_an_answer() -> None:
    server = Server()
    server.is_held_up = True
    assert server.looks() == 100
    server.is_held_up = False
    assert server.looks() == 6
