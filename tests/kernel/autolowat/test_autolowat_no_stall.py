"""No stall, ever: whatever becomes of the packets, and however the application reads.

1. A client sends frames of random sizes over several connections, cut at random.
2. The wire between the two loses packets, doubles them, lets them overtake each other, and forges copies that TCP
   throws away: with a wrong checksum, or with an old timestamp. The receiving socket loses some more, after all
   that sees packets.
3. A server reads in chunks of its own, driven by epoll alone: no time-out ever makes it read. Now and then it
   reads the rest of a frame with the socket blocking.
4. A frame that the kernel has in order and that the reader is not woken for, is a stall.

The arm with a mark that is never lowered shows that the test sees stalls. REUSEPORT_TOOL_FRAMES makes it longer.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.check import framing_lab
from reuseport_tool.kernel import autolowat, cgroup, netns
from reuseport_tool.models import Engine
from reuseport_tool.record import record
from tests.kernel.wire import FAR, FAR6, Chances, Wire, wire

pytestmark = pytest.mark.needs("AutoLOWAT solo")

PORT = 9000
FRAMES = int(os.environ.get("REUSEPORT_TOOL_FRAMES", "6000"))
PER_RUN = 200
# Longer than a delayed acknowledgement can take (TCP_DELACK_MAX, 200 ms), and than this machine is away at times.
STALL_S = 3.0
RUN_S = 180.0
SO_RCVTIMEO = 20
SO_ATTACH_FILTER = 26


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


def lose(sock: socket.socket, chance: float) -> None:
    """A socket filter (classic BPF) that drops segments by chance, after every tc program has seen them."""
    random_word, greater, keep, drop = 0xFFFFF000 + 56, 0x25, 0xFFFFFFFF, 0
    steps = [(0x20, 0, 0, random_word), (greater, 0, 1, int(chance * 2**32)), (0x06, 0, 0, keep), (0x06, 0, 0, drop)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    held, address = pinned_in_memory(code)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(steps), address))
    del held


def pinned_in_memory(data: bytes) -> tuple[object, int]:
    import ctypes

    held = ctypes.create_string_buffer(data, len(data))
    return held, ctypes.addressof(held)


def set_sysctls(line: Wire, traffic: Traffic) -> None:
    for path in (line.near, line.far):
        with netns.visit(path):
            for name, value in (("sack", traffic.sack), ("timestamps", traffic.timestamps), ("ecn", traffic.ecn)):
                Path(f"/proc/sys/net/ipv4/tcp_{name}").write_text(str(int(value)))


@dataclass
class Outcome:
    """`wrong` is empty if all is well; the longest that a reader waited for what was there, by polls of 20 ms."""

    wrong: str
    worst_s: float


def run(line: Wire, traffic: Traffic, midway: Callable[[], None] = lambda: None) -> Outcome:
    """One run of PER_RUN frames a connection. `midway` is called while it runs."""
    chance = random.Random(traffic.seed)
    streams = [frames_of(traffic, chance) for _ in range(traffic.connections)]
    ends = [list(_sums(frames)) for frames in streams]
    pieces = [list(cut(frames, traffic.pieces, chance)) for frames in streams]
    line.chances = traffic.chances()
    set_sysctls(line, traffic)
    done = threading.Event()
    address = (FAR6 if traffic.ipv6 else FAR, PORT)
    with netns.visit(line.far), socket.socket(socket.AF_INET6 if traffic.ipv6 else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if traffic.receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, traffic.receive_buffer)
        listener.bind(address)
        listener.listen()
        listener.settimeout(RUN_S)
        client = threading.Thread(target=send, args=(line.near, address, pieces, random.Random(1), done))
        client.start()
        connections: list[Connection] = []
        try:
            connections = accept(listener, [b"".join(frames) for frames in streams], ends)
            for connection in connections if traffic.lost_after_tc else ():
                lose(connection.sock, traffic.lost_after_tc)
            timer = threading.Timer(0.05, midway)
            timer.start()
            wrong = Reader(connections, traffic, chance).read()
            timer.join()
            same = all(b"".join(connection.got) == connection.expected for connection in connections)
            worst_s = max(connection.worst_s for connection in connections)
            return Outcome(wrong or ("" if same else "the bytes are not those that were sent"), worst_s)
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
    return [Engine.SOLO] if autolowat.missing_for_native() else [Engine.SOLO, Engine.NATIVE]


@contextlib.contextmanager
def attached(line: Wire, engine: Engine) -> Iterator[autolowat.EngineMaps]:
    """The engine at the far end of the wire, in a cgroup that this process is in."""
    plan = AttachmentPlan(engine=engine, framing="rpc", ports=(PORT,))
    with cgroup.throw_away() as folder, netns.visit(line.far), framing_lab.programs_at(folder, plan) as maps:
        yield maps


def drive(line: Wire, seen: Callable[[Traffic, Outcome], None]) -> None:
    # 2.5 connections a run, in the mean.
    @settings(
        max_examples=max(1, FRAMES * 2 // (PER_RUN * 5)),
        deadline=None,
        database=None,
        derandomize=FRAMES <= 6000,
        suppress_health_check=list(HealthCheck),
    )
    @given(traffics)
    def property_(traffic: Traffic) -> None:
        outcome = run(line, traffic)
        assert outcome.wrong == ""
        seen(traffic, outcome)

    property_()


@pytest.mark.parametrize("engine", [pytest.param(Engine.NATIVE, marks=pytest.mark.vm), Engine.SOLO])
def test_no_reader_stalls(line: Wire, engine: Engine) -> None:
    if engine not in engines():
        assert engine is Engine.NATIVE
        return
    frames, worst_s = 0, 0.0

    def seen(traffic: Traffic, outcome: Outcome) -> None:
        nonlocal frames, worst_s
        frames += PER_RUN * traffic.connections
        worst_s = max(worst_s, outcome.worst_s)

    with attached(line, engine) as maps:
        drive(line, seen)
        followed, saved = maps.count(autolowat.FRAMES), maps.count(autolowat.SAVED)
        print(
            f"{engine}: {frames} frames without a stall, worst delay {worst_s * 1000:.0f} ms; followed {followed}, "
            f"segments that ended none {saved}, marked {maps.count(autolowat.MARKS)}, {maps.fail_opens()}"
        )
        assert followed > 0
        assert saved > 0


@pytest.mark.parametrize("lost", [0.0, 0.02])
def test_the_program_at_the_device_goes_under_traffic(line: Wire, lost: float) -> None:
    """Somebody takes it away: what it had marked up comes down with the next acknowledgement."""
    worst_s = 0.0
    for seed in range(6):
        traffic = replace(
            CALM,
            seed=seed,
            connections=4,
            pieces=6,
            edge=bool(seed % 2),
            chunk=(100, 1500, 1 << 16)[seed % 3],
            lost=lost,
        )
        with cgroup.throw_away() as folder, netns.visit(line.far), contextlib.ExitStack() as at_devices:
            plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=(PORT,))
            with framing_lab.programs_at(folder, plan, at_devices) as maps:
                outcome = run(line, traffic, at_devices.close)
                assert outcome.wrong == ""
                assert maps.count(autolowat.MARKS) > 0
        worst_s = max(worst_s, outcome.worst_s)
    print(f"worst delay {worst_s * 1000:.0f} ms")


def test_a_mark_that_stays_is_seen_as_a_stall(line: Wire) -> None:
    """The same reader, and an application that sets SO_RCVLOWAT once: what this test is able to see."""
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
            wrong = Reader([Connection(server, frame, [len(frame)])], CALM, random.Random(1)).read()
            assert wrong.startswith("stalled")
