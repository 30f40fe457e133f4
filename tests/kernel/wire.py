"""A wire between two network namespaces on which packets are lost, doubled, overtaken and forged, by a seed."""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reuseport_tool.kernel import links, netns

NEAR, FAR = "10.9.0.1", "10.9.0.2"
NEAR6, FAR6 = "fd09::1", "fd09::2"
_SIOCETHTOOL = 0x8946
_STXCSUM, _STSO, _SGSO, _SGRO = 0x17, 0x1F, 0x24, 0x2C
_ETH_P_ALL = 3


@dataclass(kw_only=True)
class Chances:
    """Of each packet, from 0 to 1; `delay_s` is how far a late one is held back.

    Attributes:
        corrupted: before a segment comes a copy with other bytes, whose checksum is wrong.
        stale: before a segment comes a copy with other bytes, a right checksum and an old timestamp.
    """

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    corrupted: float = 0.0
    stale: float = 0.0
    delay_s: float = 0.004


class Wire:
    """`near` and `far` are paths of the two namespaces. Chances may be changed at any time."""

    def __init__(self, near: str, far: str, ends: tuple[socket.socket, socket.socket], seed: int) -> None:
        self.near, self.far = near, far
        self.chances = Chances()
        # What becomes of a packet on its way to the far end, where chance does not decide.
        self.script: Callable[[bytes], list[bytes]] | None = None
        self.random = random.Random(seed)
        self._ends = ends
        self._late: list[tuple[float, int, socket.socket, bytes]] = []
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        poll = select.poll()
        for end in self._ends:
            poll.register(end, select.POLLIN)
        while not self._stop.is_set():
            poll.poll(1 if self._late else 20)
            for end, other in (self._ends, self._ends[::-1]):
                self._drain(end, other)
            self._release()

    def _drain(self, end: socket.socket, other: socket.socket) -> None:
        for _ in range(64):
            try:
                packet, address = end.recvfrom(1 << 16)
            except BlockingIOError:
                return
            if address[2] != socket.PACKET_OUTGOING:
                self._pass(other, packet)

    def _pass(self, to: socket.socket, packet: bytes) -> None:
        chances, roll = self.chances, self.random.random
        if self.script is not None and to is self._ends[1]:
            for made in self.script(packet):
                self._send(to, made)
            return
        if roll() < chances.corrupted:
            self._send(to, forged(packet, self.random, fresh=True))
        if roll() < chances.stale:
            self._send(to, forged(packet, self.random, fresh=False))
        if roll() < chances.lost:
            return
        for _ in range(2 if roll() < chances.doubled else 1):
            if roll() < chances.late:
                self._number += 1
                due = time.monotonic() + roll() * chances.delay_s
                heapq.heappush(self._late, (due, self._number, to, packet))
            else:
                self._send(to, packet)

    def _release(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(self._late)
            self._send(to, packet)

    def _send(self, to: socket.socket, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # a full queue loses it
            to.send(packet)


def payload_of(packet: bytes) -> bytes:
    """The payload of a TCP segment; empty for anything else."""
    is_ipv6 = packet[12:14] == b"\x86\xdd"
    if packet[20 if is_ipv6 else 23] != socket.IPPROTO_TCP:
        return b""
    tcp = 14 + (40 if is_ipv6 else (packet[14] & 15) * 4)
    return packet[tcp + (packet[tcp + 12] >> 4) * 4 :]


def forged(packet: bytes, chance: random.Random, fresh: bool) -> bytes:
    """The packet with other bytes in its payload.

    Args:
        fresh: leave its checksum as it is, which is wrong then; else make it right, and the timestamp an old one.

    One without payload, or without a timestamp where that is wanted, comes back as it is.
    """
    is_ipv6 = packet[12:14] == b"\x86\xdd"
    tcp = 14 + (40 if is_ipv6 else (packet[14] & 15) * 4)
    if packet[20 if is_ipv6 else 23] != socket.IPPROTO_TCP:
        return packet
    payload = tcp + (packet[tcp + 12] >> 4) * 4
    made = bytearray(packet)
    if payload >= len(packet):
        return packet
    for at in range(payload, min(payload + 8, len(packet))):
        made[at] ^= chance.randint(0, 3)
    made[-1] ^= 1
    addresses = packet[22:54] if is_ipv6 else packet[26:34]
    if fresh:
        if _checksum(addresses, bytes(made[tcp:])) == 0:  # the changes cancel each other out
            made[-1] ^= 2
        return bytes(made)
    if packet[tcp + 20 : tcp + 24] != b"\1\1\x08\x0a":
        return packet
    (stamp,) = struct.unpack_from(">I", packet, tcp + 24)
    struct.pack_into(">I", made, tcp + 24, (stamp - 1_000_000) % 2**32)
    made[tcp + 16 : tcp + 18] = bytes(2)
    struct.pack_into(">H", made, tcp + 16, _checksum(addresses, bytes(made[tcp:])))
    return bytes(made)


def _checksum(addresses: bytes, segment: bytes) -> int:
    data = addresses + struct.pack(">II", len(segment), socket.IPPROTO_TCP) + segment
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2])) + (data[-1] << 8) * (len(data) % 2)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@contextlib.contextmanager
def wire(seed: int = 0) -> Iterator[Wire]:
    """Two throw-away namespaces with addresses NEAR and FAR, and the wire; the calling thread is in the near one."""
    with contextlib.ExitStack() as stack:
        paths, ends, devices = [], [], []
        for address, address6 in ((FAR, FAR6), (NEAR, NEAR6)):
            stack.enter_context(netns.throw_away())
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            paths.append(f"/proc/{os.getpid()}/fd/{fd}")
            device = links.veth("wire0", "wire1")
            for name in ("wire0", "wire1"):
                offload_off(name)
            links.give_address("wire0", address, 24)
            links.give_address("wire0", address6, 64)
            ends.append(stack.enter_context(_packet_socket("wire1")))
            devices.append(device.near_hardware)
        for far, near in ((FAR, NEAR), (FAR6, NEAR6)):
            links.add_neighbour("wire0", far, devices[0])
            with netns.visit(paths[0]):
                links.add_neighbour("wire0", near, devices[1])
        made = Wire(paths[1], paths[0], (ends[1], ends[0]), seed)
        stack.callback(made.close)
        yield made


def _packet_socket(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    made.bind((device, _ETH_P_ALL))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.setblocking(False)
    return made


def offload_off(device: str) -> None:
    """Whole checksums and segments: what the relay reads must be what a real wire carries."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (_STXCSUM, _STSO, _SGSO, _SGRO):
            value = bytearray(struct.pack("=II", command, 0))
            address, _ = _address(value)
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("=16sQ8x", device.encode(), address))


def _address(value: bytearray) -> tuple[int, object]:
    import ctypes

    held = (ctypes.c_char * len(value)).from_buffer(value)
    return ctypes.addressof(held), held
