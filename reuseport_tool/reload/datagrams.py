"""What the kernel tells of UDP sockets, and datagrams of the tool's own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.group import steering
from reuseport_tool.group.pins import Pins
from reuseport_tool.group.state import State
from reuseport_tool.kernel import diag, rcu
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.kernel.iterator import UdpInfo, UdpListeners
from reuseport_tool.kernel.udp_sent import Sent, SentPackets
from reuseport_tool.models import Endpoint, FlowMode
from reuseport_tool.reload.world import KeptFlows

_AGAIN_S = 0.5


class Flows:
    """What the program of each group knows of flows."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._kept: dict[Endpoint, KeptFlows] = {}

    def flow_mode(self, group: Endpoint) -> FlowMode | None:
        """What the group keeps together; None where nothing of ours is attached."""
        opened = self._pins.state(group)
        return opened.flows.mode if opened is not None else None

    def flows(self, group: Endpoint) -> Iterator[RawFlow]:
        """The recorded flows of a group."""
        opened = self._pins.state(group)
        return opened.flows.recorded() if opened is not None else iter(())

    def open_slots(self, group: Endpoint, generation: int) -> frozenset[int]:
        """The slots of a generation whose sockets are open."""
        opened = self._pins.state(group)
        if opened is None or generation not in opened.generations.numbers():
            return frozenset()
        return frozenset(slot for slot, _ in opened.generations[generation].slots())

    def keep_flows(self, group: Endpoint, now_s: float) -> None:
        """Look at the flows, and keep for kept_flows() what was seen."""
        self._kept[group] = KeptFlows(seen_s=now_s, flows=tuple(self.flows(group)))

    def kept_flows(self, group: Endpoint) -> KeptFlows | None:
        """What keep_flows() saw last, in this process."""
        return self._kept.get(group)

    def connection_ids(self, group: Endpoint) -> int | None:
        """How many QUIC connection IDs are known; None where the group keeps none."""
        opened = self._pins.state(group)
        return opened.flows.connection_ids() if opened is not None else None

    def is_crowded(self, group: Endpoint) -> bool:
        """Whether so many flows or connection IDs are known that the kernel may forget some that are in use."""
        opened = self._pins.state(group)
        if opened is None:
            return False
        most = opened.flows.capacity // 2
        return (opened.flows.connection_ids() or 0) > most or sum(1 for _ in opened.flows.recorded()) > most


class Datagrams(Flows, Closing):
    """Looks at the calling thread's network namespace. A context manager.

    Args:
        wait: waits for a condition at most so many seconds; an interrupt may end it with an exception.
    """

    def __init__(self, pins: Pins, wait: Callable[[Callable[[], bool], float], bool]) -> None:
        super().__init__(pins)
        self._wait = wait
        self._owned = ExitStack()
        self._iterator: UdpListeners | None = None
        self._is_loaded = False
        self._sent: SentPackets | None = None
        self._last: dict[int, UdpInfo] = {}

    def close(self) -> None:
        """Stop looking."""
        self._owned.close()

    def sockets(self) -> Mapping[int, UdpInfo]:
        """Every bound UDP socket, by cookie; none where the kernel does not tell."""
        if not self._is_loaded:
            self._is_loaded = True
            with contextlib.suppress(Unsupported, MissingCapability):
                self._iterator = self._owned.enter_context(UdpListeners())
        found = self._iterator.read() if self._iterator is not None else {}
        self._last.update(found)
        return found

    def last_seen(self, cookie: int) -> UdpInfo | None:
        """A socket as it was at the last look at which it was open."""
        return self._last.get(cookie)

    def watch(self, cookies: Collection[int]) -> None:
        """Count what these sockets send from now on. Raises Unsupported, MissingCapability."""
        if self._sent is not None:
            self._sent.close()
        self._sent = self._owned.enter_context(SentPackets(cookies))

    def sent(self) -> Mapping[int, Sent]:
        """What the watched sockets have sent."""
        return self._sent.read() if self._sent is not None else {}

    def barrier(self) -> None:
        """Return when no datagram is on its way that an earlier choice directed."""
        rcu.wait_for_readers()

    def connected(self, group: Endpoint) -> tuple[BoundSocket, ...]:
        """The sockets of the group's address and port that are connected to one client, whoever holds them."""
        found = diag.connected_sockets(group.port)
        anywhere = group.address in steering.LOOPBACK
        return tuple(each for each in found if anywhere or each.endpoint.address == group.address)

    def offer(self, group: Endpoint, count: int) -> None:
        """Send empty datagrams to the new generation, each from a port of its own. A server answers nothing."""
        for _ in range(count):
            with contextlib.suppress(OSError), _client(group, self._pins.state(group)) as client:
                client.send(b"")

    def ask(self, group: Endpoint, payload: bytes, timeout_s: float) -> None:
        """Send a datagram to the new generation until an answer comes.

        Raises:
            ToolError: none comes in time, or another server than the new one may have answered.
        """
        opened = self._pins.state(group)
        canary = opened if opened is not None and opened.choice.canary else None
        before = canary.counters().steered if canary else 0
        try:
            with _client(group, opened) as client:
                is_answered = self._send_until_answered(client, payload, timeout_s)
        except OSError as error:
            raise ToolError(f"{group} does not answer the health datagram: {error}") from error
        if not is_answered:
            raise ToolError(f"{group} does not answer the health datagram within {timeout_s:g} s")
        if canary and canary.counters().steered == before:
            raise ToolError(
                f"the health datagram does not reach the new server on {group}",
                hint="its socket has closed or connected, or the datagram's source address is translated on the way",
            )

    def _send_until_answered(self, client: socket.socket, payload: bytes, timeout_s: float) -> bool:
        answered: list[bytes] = []
        client.settimeout(0)

        def is_answered() -> bool:
            with contextlib.suppress(BlockingIOError):
                answered.append(client.recv(65535))
            return bool(answered)

        left_s = timeout_s
        while left_s > 0 and not answered:
            client.send(payload)
            self._wait(is_answered, min(_AGAIN_S, left_s))
            left_s -= _AGAIN_S
        return bool(answered)


@contextlib.contextmanager
def _client(group: Endpoint, opened: State | None) -> Iterator[socket.socket]:
    """A socket that is connected to the group. Its datagrams go to the new generation and to no recorded flow.

    Args:
        opened: the pins of the group.
    """
    family = socket.AF_INET6 if group.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client, ExitStack() as steering_:
        client.connect((steering.reachable(group), group.port))
        if opened is not None:
            source, port = client.getsockname()[:2]
            steering_.enter_context(opened.choice.steered(str(source).partition("%")[0], port))
        yield client
