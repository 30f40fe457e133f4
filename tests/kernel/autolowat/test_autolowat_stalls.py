"""Three ways in which a reader could sleep for good, each by hand, for every engine.

1. The first segment of a frame is lost, the second one arrives, and the first is sent again.
2. Copies with other bytes, which TCP throws away, come before the segments of a frame.
3. A non-blocking reader takes a part of a frame, makes its socket a blocking one, and calls recv() for more.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import DEADLINE_S, rpc_frame
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup, netns
from reuseport_tool.models import Engine
from reuseport_tool.waiting import wait_until
from tests.kernel.wire import FAR, FAR6, Wire, forged, payload_of, wire

pytestmark = [pytest.mark.needs("AutoLOWAT solo"), pytest.mark.parametrize("engine", Engine)]

PORT = 9000
# A retransmission takes 200 ms at least, and a busy machine its time.
WOKEN_S = 5.0
ADDRESSES = {"ipv4": FAR, "ipv6": FAR6}


@pytest.fixture
def line(root: None) -> Iterator[Wire]:
    with wire() as made:
        yield made


@contextlib.contextmanager
def connected(line: Wire, engine: Engine, address: str = FAR) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over the wire; the server's is followed."""
    plan = AttachmentPlan(engine=engine, framing="rpc", ports=(PORT,))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(cgroup.throw_away())
        with netns.visit(line.far):
            stack.enter_context(framing_lab.programs_at(folder, plan))
            listener = stack.enter_context(socket.create_server((address, PORT), family=family(address)))
        with netns.visit(line.near):
            client = stack.enter_context(socket.create_connection((address, PORT), DEADLINE_S))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        yield client, server


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_here(engine: Engine) -> bool:
    return engine is Engine.SOLO or not kernel.missing_for_native()


def read_by_events(server: socket.socket, size: int, chunk: int) -> bytes:
    """Read so much, woken by epoll alone."""
    got = b""
    with select.epoll() as waiting:
        waiting.register(server, select.EPOLLIN)
        while len(got) < size:
            assert waiting.poll(WOKEN_S), f"stalled at {len(got)} of {size} bytes"
            got += server.recv(chunk)
    return got


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_the_first_segment_is_lost(line: Wire, engine: Engine, address: str) -> None:
    if not is_here(engine):
        return
    frame = rpc_frame(400, 592)
    seen: list[int] = []

    def lose_the_first(packet: bytes) -> list[bytes]:
        size = len(payload_of(packet))
        seen.append(size)
        return [] if size == 300 and seen.count(300) == 1 else [packet]

    with connected(line, engine, address) as (client, server), select.epoll() as waiting:
        waiting.register(server, select.EPOLLIN)
        line.script = lose_the_first
        client.sendall(frame[:300])
        client.sendall(frame[300:])
        assert waiting.poll(WOKEN_S)
        assert server.recv(400) == frame[:400]
        assert waiting.poll(WOKEN_S), f"stalled, SO_RCVLOWAT {server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)}"
        assert server.recv(4096) == frame[400:]
        client.sendall(frame)
        assert read_by_events(server, len(frame), 4096) == frame
    assert seen.count(300) == 2


@pytest.mark.parametrize("fresh", [True, False], ids=["a wrong checksum", "an old timestamp"])
@pytest.mark.parametrize("chunk", [7, 40, 4096])
def test_copies_that_are_thrown_away(line: Wire, engine: Engine, fresh: bool, chunk: int) -> None:
    """Before each segment of a frame in three pieces."""
    if not is_here(engine):
        return
    frame = rpc_frame(20, 36)

    def forge(packet: bytes) -> list[bytes]:
        return [forged(packet, line.random, fresh=fresh), packet] if payload_of(packet) else [packet]

    with connected(line, engine) as (client, server):
        client.sendall(rpc_frame(0, 4))
        assert read_by_events(server, 12, 4096) == rpc_frame(0, 4)
        line.script = forge
        for _ in range(20):
            for begin, end in ((0, 8), (8, 30), (30, 64)):
                client.sendall(frame[begin:end])
            assert read_by_events(server, len(frame), chunk) == frame


def test_a_header_that_lies(line: Wire, engine: Engine) -> None:
    """The copy says that the frame has 32,768 bytes; a reader that believed it would wait for them."""
    if not is_here(engine):
        return
    frame = rpc_frame(20, 36)

    def lie(packet: bytes) -> list[bytes]:
        payload = payload_of(packet)
        if len(payload) != 8:
            return [packet]
        return [packet[:-8] + struct.pack("<II", 20, 32768 - 28), packet]

    with connected(line, engine) as (client, server):
        line.script = lie
        for _ in range(5):
            for begin, end in ((0, 8), (8, 30), (30, 64)):
                client.sendall(frame[begin:end])
            assert read_by_events(server, len(frame), 4096) == frame


@pytest.mark.parametrize("taken", [0, 4])
def test_a_socket_becomes_a_blocking_one(line: Wire, engine: Engine, taken: int) -> None:
    if not is_here(engine):
        return
    frame = rpc_frame(1000, 1992)
    with connected(line, engine) as (client, server):
        client.sendall(rpc_frame(0, 4))
        assert read_by_events(server, 12, 4096) == rpc_frame(0, 4)
        client.sendall(frame[:500])
        assert wait_until(lambda: framing_lab.arrived(server).size == 12 + 500, DEADLINE_S)
        got = [server.recv(taken)] if taken else []
        server.setblocking(True)
        reader = threading.Thread(target=lambda: read_all(server, got, len(frame)))
        reader.start()
        client.sendall(frame[500:])
        reader.join(WOKEN_S)
        stalled = reader.is_alive()
        client.shutdown(socket.SHUT_WR)
        reader.join()
        assert not stalled
        assert b"".join(got) == frame


def read_all(server: socket.socket, got: list[bytes], size: int) -> None:
    while sum(map(len, got)) < size:
        got.append(server.recv(4096))
        if not got[-1]:
            return
