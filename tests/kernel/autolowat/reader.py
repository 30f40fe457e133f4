"""A reader that sees when it is not woken for a frame that the kernel has in order."""

from __future__ import annotations

import bisect
import contextlib
import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from reuseport_tool.check import framing_lab
from tests.kernel.autolowat.traffic import RUN_S, Traffic

# Longer than a delayed acknowledgement can take (TCP_DELACK_MAX, 200 ms), and than this machine is away at times.
STALL_S = 3.0
SO_RCVTIMEO = 20


@dataclass
class Connection:
    """The server's end and what it must get; `ends` are the offsets at which frames end."""

    sock: socket.socket
    expected: bytes
    ends: list[int]
    taken: int = 0
    got: list[bytes] = field(default_factory=list)
    waiting_since: float | None = None
    worst_s: float = 0.0

    def is_owed(self) -> bool:
        """Whether the kernel has a whole frame, or all there will be, that the reader has not been given."""
        there = framing_lab.arrived(self.sock).size
        whole = bisect.bisect_right(self.ends, there)
        return whole > 0 and self.ends[whole - 1] > self.taken

    def give(self, data: bytes) -> None:
        self.got.append(data)
        self.taken += len(data)
        if self.waiting_since is not None:
            self.worst_s = max(self.worst_s, time.monotonic() - self.waiting_since)
        self.waiting_since = None

    def frame_end(self) -> int:
        return self.ends[min(bisect.bisect_right(self.ends, self.taken), len(self.ends) - 1)]


def accept(listener: socket.socket, expected: list[bytes], ends: list[list[int]]) -> list[Connection]:
    """The connections; the first frame of each says which one it is."""
    made = []
    for _ in expected:
        sock, _ = listener.accept()
        first = sock.recv(12, socket.MSG_WAITALL)
        number = struct.unpack("<III", first)[2]
        sock.setblocking(False)
        made.append(Connection(sock, first + expected[number], [12, *(12 + end for end in ends[number])], 12, [first]))
    return made


class Reader:
    """Reads everything, woken by epoll alone."""

    def __init__(self, connections: list[Connection], traffic: Traffic, chance: random.Random) -> None:
        self._connections, self._traffic, self._chance = connections, traffic, chance
        self.wrong = ""

    def read(self) -> str:
        """Returns what went wrong, or an empty string."""
        deadline = time.monotonic() + RUN_S
        with select.epoll() as poll:
            by_fd = {connection.sock.fileno(): connection for connection in self._connections}
            for fd in by_fd:
                poll.register(fd, select.EPOLLIN | (select.EPOLLET if self._traffic.edge else 0))
            while any(connection.taken < len(connection.expected) for connection in self._connections):
                events = poll.poll(0.02)
                for fd, _ in events:
                    self._take(by_fd[fd])
                self._check(bool(events))
                if self.wrong:
                    return self.wrong
                if time.monotonic() > deadline:
                    return f"not done after {RUN_S} s, and nothing is owed: the wire is too bad"
        return ""

    def _take(self, connection: Connection) -> None:
        while True:
            try:
                data = connection.sock.recv(self._traffic.chunk)
            except BlockingIOError:
                return
            connection.give(data)
            # With several connections the client might wait for one while we wait for another.
            if len(self._connections) == 1 and self._chance.random() < self._traffic.blocking:
                self._take_blocking(connection)
            if not self._traffic.edge or not data:
                return

    def _take_blocking(self, connection: Connection) -> None:
        """The rest of the frame, as one who knows how long it is."""
        end = connection.frame_end()
        connection.sock.setblocking(True)
        connection.sock.setsockopt(socket.SOL_SOCKET, SO_RCVTIMEO, struct.pack("ll", int(STALL_S), 0))
        deadline = time.monotonic() + RUN_S
        while connection.taken < end and time.monotonic() < deadline and not self.wrong:
            begin = time.monotonic()
            with contextlib.suppress(BlockingIOError):
                connection.give(connection.sock.recv(min(self._traffic.chunk, end - connection.taken)))
            if time.monotonic() - begin > STALL_S * 0.9 and framing_lab.arrived(connection.sock).size >= end:
                self.wrong = self._stalled(connection, "in recv() ")
        connection.sock.setsockopt(socket.SOL_SOCKET, SO_RCVTIMEO, struct.pack("ll", 0, 0))
        connection.sock.setblocking(False)

    def _check(self, busy: bool) -> None:
        if busy:
            return
        now = time.monotonic()
        for connection in self._connections:
            if not connection.is_owed():
                connection.waiting_since = None
            elif connection.waiting_since is None:
                connection.waiting_since = now
            elif now - connection.waiting_since > STALL_S:
                self.wrong = self._stalled(connection, "")

    @staticmethod
    def _stalled(connection: Connection, where: str) -> str:
        lowat = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        there = framing_lab.arrived(connection.sock).size
        return f"stalled {where}at {connection.taken} of {there} bytes, SO_RCVLOWAT {lowat}"
