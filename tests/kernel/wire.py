"""A wire between two network namespaces on which packets are lost, doubled and overtaken, by a seed."""

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
from collections.abc import Iterator
from dataclasses import dataclass

from reuseport_tool.kernel import links, netns

NEAR, FAR = "10.9.0.1", "10.9.0.2"
_SIOCETHTOOL = 0x8946
_STXCSUM, _STSO, _SGSO, _SGRO = 0x17, 0x1F, 0x24, 0x2C
_ETH_P_ALL = 3


@dataclass(kw_only=True)
class Chances:
    """Of each packet, from 0 to 1; `delay_s` is how far a late one is held back."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    delay_s: float = 0.004


class Wire:
    """`near` and `far` are paths of the two namespaces. Chances may be changed at any time."""

    def __init__(self, near: str, far: str, ends: tuple[socket.socket, socket.socket], seed: int) -> None:
        self.near, self.far = near, far
        self.chances = Chances()
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


@contextlib.contextmanager
def wire(seed: int = 0) -> Iterator[Wire]:
    """Two throw-away namespaces with addresses NEAR and FAR, and the wire; the calling thread is in the near one."""
    with contextlib.ExitStack() as stack:
        paths, ends, devices = [], [], []
        for address in (FAR, NEAR):
            stack.enter_context(netns.throw_away())
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            paths.append(f"/proc/{os.getpid()}/fd/{fd}")
            device = links.veth("wire0", "wire1")
            for name in ("wire0", "wire1"):
                offload_off(name)
            links.give_address("wire0", address, 24)
            ends.append(stack.enter_context(_packet_socket("wire1")))
            devices.append(device.near_hardware)
        links.add_neighbour("wire0", FAR, devices[0])
        with netns.visit(paths[0]):
            links.add_neighbour("wire0", NEAR, devices[1])
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
