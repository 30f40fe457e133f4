"""Whether this kernel hands over UDP groups in each of the ways of --flows: each is done once, with real datagrams."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from reuseport_tool.errors import Unsupported
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import netns, quic_packets, rcu, sockets
from reuseport_tool.models import FlowMode, Policy
from reuseport_tool.probes.engine import Probe
from reuseport_tool.waiting import readable

_ADDRESS = "127.0.0.1"
_ENTRIES = 1024
_WAIT_S = 10.0
_ID = b"\x11" * 8


class _Lab:
    """A group with one socket that is replaced by another one; closed by the stack."""

    def __init__(self, stack: ExitStack, mode: FlowMode) -> None:
        self._stack = stack
        self.scratch = Scratch(stack, Policy.HASH, FlowChoice(mode=mode, entries=_ENTRIES))
        self.old = self._member(0)
        self.port = self.old.getsockname()[1]
        self.scratch.add_generation(1, [self.old])
        sockets.attach_program(self.old.fileno(), self.scratch.program)
        if mode is FlowMode.QUIC:
            self.scratch.read_answers(self.port)
        self.new: socket.socket | None = None

    def _socket(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))

    def _member(self, port: int) -> socket.socket:
        made = self._socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((_ADDRESS, port))
        return made

    def client(self) -> socket.socket:
        """One with a port of its own."""
        made = self._socket()
        made.connect((_ADDRESS, self.port))
        return made

    def replace(self) -> None:
        """From here what belongs to nobody goes to the new socket."""
        self.new = self._member(self.port)
        self.scratch.add_generation(2, [self.new])
        rcu.wait_for_readers()

    def expect(self, client: socket.socket, payload: bytes, reader: socket.socket | None, what: str) -> tuple[str, int]:
        """Send a datagram. Returns its source; raises Unsupported when it does not reach this socket."""
        assert reader is not None
        client.send(payload)
        if not readable(reader, _WAIT_S):
            raise Unsupported(f"{what} does not reach its socket")
        source: tuple[str, int] = reader.recvfrom(2048)[1]
        return source


@contextmanager
def _opened(mode: FlowMode) -> Iterator[_Lab]:
    with netns.throw_away(), ExitStack() as stack:
        yield _Lab(stack, mode)


def _none() -> str:
    with _opened(FlowMode.NONE) as lab:
        client = lab.client()
        lab.expect(client, b"before", lab.old, "a datagram before the switch")
        lab.replace()
        lab.expect(client, b"after", lab.new, "a datagram after the switch")
    return "a datagram before a switch reached the old socket, one after it the new one"


def _address() -> str:
    with _opened(FlowMode.ADDRESS) as lab:
        client = lab.client()
        lab.expect(client, b"first", lab.old, "the first datagram of a flow")
        lab.replace()
        lab.expect(client, b"second", lab.old, "a datagram of a flow that was there before the switch")
        lab.expect(lab.client(), b"first", lab.new, "the first datagram of a later flow")
    return "a flow stayed with the old socket over a switch, a later one reached the new socket"


def _quic() -> str:
    with _opened(FlowMode.QUIC) as lab:
        client = lab.client()
        source = lab.expect(client, quic_packets.initial(b"\x22" * 8), lab.old, "the first packet of a connection")
        lab.old.sendto(quic_packets.long(quic_packets.HANDSHAKE, b"client", _ID), source)
        lab.expect(client, quic_packets.long(quic_packets.HANDSHAKE, _ID), lab.old, "the client's Handshake packet")
        lab.expect(client, quic_packets.short(_ID), lab.old, "a short header")
        lab.replace()
        lab.expect(lab.client(), quic_packets.short(_ID), lab.old, "a known connection ID from another address")
        lab.expect(lab.client(), quic_packets.initial(b"\x33" * 8), lab.new, "the first packet of a later connection")
        counted = lab.scratch.flow_counters()
    if counted is None or (counted.learnt, counted.moved) != (1, 1):  # by the generation before it would go there, too
        raise Unsupported("the connection ID that a server answers is not learnt")
    return "a connection stayed with the old socket over a switch when its address changed, a later one did not"


_NEEDS = ("CAP_SYS_ADMIN", "CAP_BPF", "CAP_NET_ADMIN")
_probe = functools.partial(Probe, needs=_NEEDS)
PROBES = (
    _probe(name="UDP, --flows none", since="5.10", run=_none),
    _probe(name="UDP, --flows address", since="5.10", run=_address),
    _probe(name="UDP, --flows quic", since="5.10", run=_quic),
)
