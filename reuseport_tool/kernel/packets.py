"""Crafted TCP clients: handshakes that stop, and go on, at the step that a test wants.

    the server's kernel ── near (the server's address) ═ veth ═ far ── scapy, AF_PACKET

The far end has no address, and the clients' hardware address is not its own, so no kernel takes
the server's segments and answers them with RST. Nothing is lost on the way, so nothing is resent.
"""

from __future__ import annotations

import enum
import itertools
import socket
import time
from collections.abc import Callable
from typing import Any

from scapy.arch.linux import L2Socket
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability
from reuseport_tool.kernel import capabilities, links
from reuseport_tool.waiting import readable

_NEAR, _FAR = "server", "clients"
_CLIENTS_HARDWARE = "02:00:00:00:00:02"
_FIRST_PORT = 40000
_SEQUENCE = 1000  # of every client's SYN
_SYN, _RST, _PSH, _ACK, _FIN = 0x02, 0x04, 0x08, 0x10, 0x01


class Family(enum.StrEnum):
    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def socket_family(self) -> socket.AddressFamily:
        return socket.AF_INET if self is Family.IPV4 else socket.AF_INET6

    @property
    def server(self) -> str:
        """The server's address, of the blocks for documentation (RFC 5737, RFC 3849)."""
        return "192.0.2.1" if self is Family.IPV4 else "2001:db8::1"

    @property
    def client(self) -> str:
        return "192.0.2.2" if self is Family.IPV4 else "2001:db8::2"

    @property
    def prefix(self) -> int:
        return 24 if self is Family.IPV4 else 64


class CraftedClient:
    """One TCP connection of a crafted client.

    Attributes:
        port: its own.
        syn_acks: how many SYN+ACKs came, retransmissions included.
        answer: the data that came, in order; acknowledged as it comes.
        reset: whether an RST came.
    """

    def __init__(self, wire: Wire, port: int) -> None:
        self.port = port
        self.syn_acks = 0
        self.answer = b""
        self.reset = False
        self._wire = wire
        self._sequence = _SEQUENCE
        self._end: int | None = None  # the sequence number of the FIN
        self._expected = 0  # the server's next sequence number; 0 before its SYN+ACK

    @property
    def concluded(self) -> bool:
        """Whether the server has answered or refused."""
        return bool(self.answer) or self.reset

    def syn(self, data: bytes = b"") -> None:
        """Send the SYN; data in it asks for TCP Fast Open without a cookie."""
        self._wire.send(self.port, _SYN, self._sequence, 0, data)

    def ack(self, data: bytes = b"") -> None:
        """Acknowledge what has come, perhaps with data: after a SYN+ACK it completes the handshake."""
        self._wire.send(self.port, _ACK | (_PSH if data else 0), self._sequence, self._expected, data)
        self._sequence += len(data)

    def fin(self) -> None:
        """Send no more; called again, the same segment once more."""
        if self._end is None:
            self._end = self._sequence
            self._sequence += 1
        self._wire.send(self.port, _FIN | _ACK, self._end, self._expected, b"")

    def rst(self) -> None:
        """Reset the connection."""
        self._wire.send(self.port, _RST, self._sequence, 0, b"")

    def receive(self, segment: Any) -> None:
        """Take a segment of the server."""
        flags = int(segment.flags)
        data = bytes(segment[Raw].load) if Raw in segment else b""
        if flags & _RST:
            self.reset = True
        elif flags & _SYN:
            self.syn_acks += 1
            if self.syn_acks == 1:
                self._sequence = segment.ack
                self._expected = (segment.seq + 1) % (1 << 32)
        elif (data or flags & _FIN) and segment.seq == self._expected:
            self.answer += data
            self._expected = (self._expected + len(data) + bool(flags & _FIN)) % (1 << 32)
            self.ack()


class Wire(Closing):
    """A veth pair in the calling thread's namespace, with the clients at its far end.

    A context manager; the devices go with the namespace. It belongs to one thread.

    Raises:
        Unsupported: the kernel has no veth devices.
        MissingCapability: CAP_NET_RAW is needed.
    """

    def __init__(self, family: Family, port: int) -> None:
        """Args: the family, and the port that the server listens on."""
        self._family = family
        self._port = port
        self._clients: dict[int, CraftedClient] = {}
        self._ports = itertools.count(_FIRST_PORT)
        self._pair = links.veth(_NEAR, _FAR)
        links.give_address(_NEAR, family.server, family.prefix)
        links.add_neighbour(_NEAR, family.client, _CLIENTS_HARDWARE)
        try:
            self._socket = L2Socket(iface=_FAR, promisc=False)
        except PermissionError as error:
            raise MissingCapability(
                "opening a packet socket is not permitted", hint=capabilities.hint("CAP_NET_RAW")
            ) from error

    def close(self) -> None:
        self._socket.close()

    def client(self) -> CraftedClient:
        """A new client, with a port of its own, that has sent nothing yet."""
        port = next(self._ports)
        self._clients[port] = CraftedClient(self, port)
        return self._clients[port]

    def send(self, source_port: int, flags: int, sequence: int, acknowledged: int, data: bytes) -> None:
        """Put one segment of a client on the wire."""
        ip = IP if self._family is Family.IPV4 else IPv6
        kind = 0x0800 if self._family is Family.IPV4 else 0x86DD
        self._socket.send(
            Ether(src=_CLIENTS_HARDWARE, dst=self._pair.near_hardware, type=kind)
            / ip(src=self._family.client, dst=self._family.server)
            / TCP(sport=source_port, dport=self._port, flags=flags, seq=sequence, ack=acknowledged, window=65535)
            / data
        )

    def pump(self) -> None:
        """Give the segments that are there to their clients."""
        while readable(self._socket.ins, 0):
            packet = self._socket.recv()
            if packet is not None and TCP in packet and packet[TCP].sport == self._port:
                client = self._clients.get(packet[TCP].dport)
                if client is not None:
                    client.receive(packet[TCP])

    def wait(self, condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
        """Pump until a condition holds. Returns whether it did within `timeout_s` seconds.

        The condition is looked at after every burst of segments, and every `interval_s` for what
        comes by another way.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.pump()
            if condition():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            readable(self._socket.ins, min(interval_s, remaining))
