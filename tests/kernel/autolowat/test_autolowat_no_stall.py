"""No stall, ever: whatever becomes of the packets, and however the application reads.

1. A client sends frames of random sizes over several connections, cut at random.
2. The wire between the two loses packets, doubles them and lets them overtake each other.
3. A server reads in chunks of its own, driven by epoll alone: no time-out ever makes it read.
4. A frame that the kernel has in order and that the reader is not woken for, is a stall.

The arm with a mark that is never lowered shows that the test sees stalls. REUSEPORT_TOOL_FRAMES makes it longer.
"""

from __future__ import annotations

import bisect
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport_tool.autolowat.attachment import Plan
from reuseport_tool.check import framing_lab
from reuseport_tool.kernel import autolowat, netns
from reuseport_tool.models import Engine, Role
from tests.kernel.wire import FAR, Chances, Wire, wire

pytestmark = pytest.mark.needs("AutoLOWAT paired")

PORT = 9000
FRAMES = int(os.environ.get("REUSEPORT_TOOL_FRAMES", "6000"))
PER_RUN = 200
# Longer than a delayed acknowledgement can take (TCP_DELACK_MAX, 200 ms), and than this machine is away at times.
STALL_S = 3.0
RUN_S = 60.0


@dataclass(kw_only=True)
class Connection:
    """The server's end and what it must get; `ends` are the offsets at which frames end."""

    sock: socket.socket
    expected: bytes
    ends: list[int]
    taken: int = 0
    got: list[bytes] = field(default_factory=list)
    waiting_since: float | None = None

    def is_owed(self) -> bool:
        """Whether the kernel has a whole frame, or all there will be, that the reader has not been given."""
        there = framing_lab.arrived(self.sock).size
        whole = bisect.bisect_right(self.ends, there)
        return whole > 0 and self.ends[whole - 1] > self.taken


@dataclass(frozen=True, kw_only=True)
class Traffic:
    seed: int
    connections: int
    largest: int
    pieces: int
    edge: bool
    chunk: int
    receive_buffer: int
    lost: float
    doubled: float
    late: float


traffics = st.builds(
    Traffic,
    seed=st.integers(0, 2**32),
    connections=st.integers(1, 4),
    largest=st.sampled_from([0, 20, 300, 3000, 40_000]),
    pieces=st.integers(1, 6),
    edge=st.booleans(),
    chunk=st.sampled_from([1, 7, 100, 1500, 1 << 16]),
    receive_buffer=st.sampled_from([0, 0, 4096, 20_000]),
    lost=st.sampled_from([0.0, 0.0, 0.01, 0.03]),
    doubled=st.sampled_from([0.0, 0.05]),
    late=st.sampled_from([0.0, 0.02, 0.2]),
)


def frames_of(traffic: Traffic, chance: random.Random) -> list[bytes]:
    sizes = [(chance.randint(0, traffic.largest // 2), chance.randint(0, traffic.largest // 2)) for _ in range(PER_RUN)]
    # A byte at a time is a system call a byte.
    most = 40 if traffic.chunk < 8 else traffic.largest
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


def send(path: str, port: int, streams: list[list[bytes]], chance: random.Random, done: threading.Event) -> None:
    with netns.visit(path):
        socks = [socket.create_connection((FAR, port), timeout=RUN_S) for _ in streams]
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


def accept(listener: socket.socket, expected: list[bytes], ends: list[list[int]]) -> list[Connection]:
    """The connections; the first frame of each says which one it is."""
    made = []
    for _ in expected:
        sock, _ = listener.accept()
        first = sock.recv(12, socket.MSG_WAITALL)
        number = struct.unpack("<III", first)[2]
        sock.setblocking(False)
        made.append(
            Connection(
                sock=sock,
                expected=first + expected[number],
                ends=[12, *(12 + end for end in ends[number])],
                taken=12,
                got=[first],
            )
        )
    return made


def read(connections: list[Connection], edge: bool, chunk: int) -> str:
    """Read everything, woken by epoll alone. Returns what went wrong, or an empty string."""
    deadline = time.monotonic() + RUN_S
    with select.epoll() as poll:
        by_fd = {connection.sock.fileno(): connection for connection in connections}
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN | (select.EPOLLET if edge else 0))
        while any(connection.taken < len(connection.expected) for connection in connections):
            events = poll.poll(0.1)
            for fd, _ in events:
                take(by_fd[fd], edge, chunk)
            stalled = check(connections, bool(events))
            if stalled:
                return stalled
            if time.monotonic() > deadline:
                return f"not done after {RUN_S} s, and nothing is owed: the wire is too bad"
    return ""


def take(connection: Connection, edge: bool, chunk: int) -> None:
    while True:
        try:
            data = connection.sock.recv(chunk)
        except BlockingIOError:
            return
        connection.got.append(data)
        connection.taken += len(data)
        connection.waiting_since = None
        if not edge or not data:
            return


def check(connections: list[Connection], busy: bool) -> str:
    if busy:
        return ""
    now = time.monotonic()
    for connection in connections:
        if not connection.is_owed():
            connection.waiting_since = None
        elif connection.waiting_since is None:
            connection.waiting_since = now
        elif now - connection.waiting_since > STALL_S:
            lowat = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
            there = framing_lab.arrived(connection.sock).size
            return f"stalled at {connection.taken} of {there} bytes, SO_RCVLOWAT {lowat}"
    return ""


def run(line: Wire, traffic: Traffic, port: int = PORT) -> str:
    """One run of PER_RUN frames a connection. Returns what went wrong."""
    chance = random.Random(traffic.seed)
    streams = [frames_of(traffic, chance) for _ in range(traffic.connections)]
    ends = [list(_sums(frames)) for frames in streams]
    pieces = [list(cut(frames, traffic.pieces, chance)) for frames in streams]
    line.chances = Chances(lost=traffic.lost, doubled=traffic.doubled, late=traffic.late)
    done = threading.Event()
    with netns.visit(line.far), socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if traffic.receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, traffic.receive_buffer)
        listener.bind((FAR, port))
        listener.listen()
        listener.settimeout(RUN_S)
        client = threading.Thread(target=send, args=(line.near, port, pieces, chance, done))
        client.start()
        connections: list[Connection] = []
        try:
            connections = accept(listener, [b"".join(frames) for frames in streams], ends)
            wrong = read(connections, traffic.edge, traffic.chunk)
            same = all(b"".join(connection.got) == connection.expected for connection in connections)
            return wrong or ("" if same else "the bytes are not those that were sent")
        finally:
            done.set()
            line.chances = Chances()
            client.join()
            for connection in connections:
                connection.sock.close()


def _sums(frames: list[bytes]) -> Iterator[int]:
    total = 0
    for frame in frames:
        total += len(frame)
        yield total


@pytest.fixture
def line(root: None) -> Iterator[Wire]:
    with wire() as made:
        yield made


def engines() -> list[Engine]:
    return [Engine.PAIRED] if autolowat.missing_for_native() else [Engine.PAIRED, Engine.NATIVE]


def drive(line: Wire, seen: Callable[[int], None]) -> None:
    @settings(
        max_examples=max(1, FRAMES // (PER_RUN * 2)),
        deadline=None,
        database=None,
        derandomize=FRAMES <= 6000,
        suppress_health_check=list(HealthCheck),
    )
    @given(traffics)
    def property_(traffic: Traffic) -> None:
        assert run(line, traffic) == ""
        seen(PER_RUN * traffic.connections)

    property_()


@pytest.mark.vm
@pytest.mark.parametrize("engine", Engine)
def test_no_reader_stalls(line: Wire, engine: Engine) -> None:
    if engine not in engines():
        assert engine is Engine.NATIVE
        return
    frames = 0

    def seen(count: int) -> None:
        nonlocal frames
        frames += count

    with framing_lab.attached(Plan(engine=engine, framing="rpc", ports=(PORT,), role=Role.BOTH)) as maps:
        drive(line, seen)
        followed, saved = maps.count(autolowat.FRAMES), maps.count(autolowat.SAVED)
        print(f"{engine}: {frames} frames, followed {followed}, saved {saved}, {maps.fail_opens()}")
        assert followed > 0
        assert saved > 0


def test_a_mark_that_stays_is_seen_as_a_stall(line: Wire) -> None:
    """The same reader, and an application that sets SO_RCVLOWAT once: what this test is able to see."""
    traffic = Traffic(
        seed=1,
        connections=1,
        largest=300,
        pieces=3,
        edge=False,
        chunk=100,
        receive_buffer=0,
        lost=0.0,
        doubled=0.0,
        late=0.0,
    )
    with netns.visit(line.far), socket.socket() as listener:
        listener.bind((FAR, PORT))
        listener.listen()
        with netns.visit(line.near):
            client = socket.create_connection((FAR, PORT))
        with client, listener.accept()[0] as server:
            frame = framing_lab.rpc_frame(10, 20)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
            server.setblocking(False)
            client.sendall(frame)
            assert read(
                [Connection(sock=server, expected=frame, ends=[len(frame)])], traffic.edge, traffic.chunk
            ).startswith("stalled")
