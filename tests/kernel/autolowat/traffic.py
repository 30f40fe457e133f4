"""Random traffic: frames of random sizes, cut at random, and what becomes of them on the wire and at the reader."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

from hypothesis import strategies as st

from reuseport_tool.kernel import netns
from reuseport_tool.record import record
from tests.kernel.wire import Chances

PER_RUN = 200
RUN_S = 180.0


@record
class Traffic:
    seed: int
    connections: int
    largest: int
    pieces: int
    edge: bool
    chunk: int
    receive_buffer: int = 0
    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    corrupted: float = 0.0
    stale: float = 0.0
    lost_after_tc: float = 0.0
    blocking: float = 0.0
    sack: bool = True
    timestamps: bool = True
    ecn: bool = False
    ipv6: bool = False

    def chances(self) -> Chances:
        """Of each packet on the wire."""
        return Chances(lost=self.lost, doubled=self.doubled, late=self.late, corrupted=self.corrupted, stale=self.stale)


def seldom(a_few: float, many: float) -> st.SearchStrategy[float]:
    """A fault that most runs do not have, and that comes once or twice in a connection, or all the time."""
    return st.sampled_from([0.0, 0.0, 0.0, 0.0, a_few, a_few, many])


CALM = Traffic(seed=1, connections=1, largest=3000, pieces=3, edge=False, chunk=100)
traffics = st.builds(
    Traffic,
    seed=st.integers(0, 2**32),
    connections=st.integers(1, 4),
    largest=st.sampled_from([0, 20, 300, 3000, 40_000]),
    pieces=st.integers(1, 6),
    edge=st.booleans(),
    chunk=st.sampled_from([1, 7, 100, 1500, 1 << 16]),
    receive_buffer=st.sampled_from([0, 0, 2304, 4096, 20_000]),
    lost=seldom(0.002, 0.02),
    doubled=seldom(0.01, 0.05),
    late=seldom(0.01, 0.2),
    corrupted=seldom(0.004, 0.1),
    stale=seldom(0.004, 0.05),
    lost_after_tc=seldom(0.002, 0.02),
    blocking=st.sampled_from([0.0, 0.0, 0.05]),
    sack=st.booleans(),
    timestamps=st.booleans(),
    ecn=st.booleans(),
    ipv6=st.booleans(),
)


def frames_of(traffic: Traffic, chance: random.Random) -> list[bytes]:
    sizes = [(chance.randint(0, traffic.largest // 2), chance.randint(0, traffic.largest // 2)) for _ in range(PER_RUN)]
    # A byte at a time is a system call a byte.
    most = 40 if traffic.chunk < 8 else traffic.largest
    if traffic.receive_buffer and traffic.receive_buffer < 4096:
        most = min(most, 300)  # a byte at a time on the wire, too
    if not traffic.sack and traffic.lost + traffic.lost_after_tc:
        most = min(most, 3000)  # without SACK most losses wait for a time-out
    return [
        struct.pack("<II", h % (most + 1), p % (most + 1)) + chance.randbytes(h % (most + 1) + p % (most + 1))
        for h, p in sizes
    ]


def cut(frames: list[bytes], pieces: int, chance: random.Random) -> Iterator[bytes]:
    """The stream in writes: several frames in one, or one in several, cut anywhere."""
    stream = b"".join(frames)
    count = max(1, len(frames) * pieces // 3)
    marks = sorted(chance.randint(0, len(stream)) for _ in range(count))
    for begin, end in zip([0, *marks], [*marks, len(stream)], strict=True):
        if end > begin:
            yield stream[begin:end]


def send(
    path: str, address: tuple[str, int], streams: list[list[bytes]], chance: random.Random, done: threading.Event
) -> None:
    with netns.visit(path):
        socks = [socket.create_connection(address, timeout=RUN_S) for _ in streams]
    for number, sock in enumerate(socks):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(struct.pack("<III", 4, 0, number))
    queues = [list(reversed(pieces)) for pieces in streams]
    while any(queues):
        number = chance.choice([number for number, queue in enumerate(queues) if queue])
        socks[number].sendall(queues[number].pop())
        if chance.random() < 0.02:
            time.sleep(0.002)
    done.wait(RUN_S)
    for sock in socks:
        sock.close()
