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

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.check import framing_lab
from reuseport_tool.kernel import autolowat, cgroup, netns
from reuseport_tool.models import Engine
from tests.kernel.autolowat.reader import Connection, Reader, accept
from tests.kernel.autolowat.traffic import CALM, PER_RUN, RUN_S, Traffic, cut, frames_of, send, traffics
from tests.kernel.wire import FAR, FAR6, Chances, Wire, wire

pytestmark = pytest.mark.needs("AutoLOWAT solo")
PORT = 9000
FRAMES = int(os.environ.get("REUSEPORT_TOOL_FRAMES", "6000"))
SO_ATTACH_FILTER = 26


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
