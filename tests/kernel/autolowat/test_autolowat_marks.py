"""When segments are marked and SO_RCVLOWAT goes up and down, with peers and readers of every kind."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import DEADLINE_S, Pair, rpc_frame
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup, netns
from reuseport_tool.models import Engine
from reuseport_tool.waiting import wait_until
from tests.kernel.autolowat.frames import CUT, FRAME, MENDED_S, PORT, is_here

pytestmark = pytest.mark.needs("AutoLOWAT solo")


def unacknowledged(sock: socket.socket) -> int:
    """tcpi_unacked, in segments."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 24)[0])


@pytest.mark.parametrize("engine", [pytest.param(Engine.NATIVE, marks=pytest.mark.vm), Engine.SOLO])
@pytest.mark.parametrize("foreign", ["client", "server"])
def test_a_peer_without_the_tool(root: None, engine: Engine, foreign: str) -> None:
    """One end is outside of the cgroup: frames arrive both ways, and only the end inside is followed."""
    if not is_here(engine):
        return
    with framing_lab.attached(AttachmentPlan(engine=engine, framing="rpc", ports=(PORT,))) as maps:
        made = _pair_with(foreign, cgroup.own())
        with made as (client, server):
            for one, other in ((client, server), (server, client)):
                for begin, end in CUT:
                    one.sendall(FRAME[begin:end])
                taken = 0
                while taken < len(FRAME):
                    assert select.select([other], [], [], DEADLINE_S)[0]
                    taken += len(other.recv(70))
        assert maps.count(kernel.OPTED_IN) == 1


class _pair_with:
    """A connection one end of which is a socket made outside of the cgroup."""

    def __init__(self, foreign: str, inside: Path) -> None:
        self._foreign, self._inside = foreign, inside

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        listener = self._made("server")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", PORT))
        listener.listen()
        client = self._made("client")
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect(("127.0.0.1", PORT))
        server = listener.accept()[0]
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._all = (listener, client, server)
        return client, server

    def _made(self, end: str) -> socket.socket:
        if end == self._foreign:
            (cgroup.root() / "cgroup.procs").write_text(str(os.getpid()))
        try:
            return socket.socket()
        finally:
            (self._inside / "cgroup.procs").write_text(str(os.getpid()))

    def __exit__(self, *_: object) -> None:
        for sock in self._all:
            sock.close()


def test_only_the_boundaries_of_long_frames_are_marked(root: None) -> None:
    """Two segments of a frame, however many it has, and none of a frame that is one segment."""
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=(PORT,))
    with framing_lab.attached(plan) as maps, framing_lab.pair(port=PORT) as pair:
        for cut, marks in (([(0, 258)], 0), (CUT, 2), ([(0, 258)], 0), ([(0, 50), (50, 258)], 2)):
            before = maps.count(kernel.MARKS)
            for begin, end in cut:
                pair.send(FRAME[begin:end])
            assert pair.server.recv(1000) == FRAME
            assert maps.count(kernel.MARKS) - before == marks
        wide = [(at, at + 10) for at in range(0, 250, 10)]
        for begin, end in [*wide, (250, 258)]:
            pair.send(FRAME[begin:end])
        assert maps.count(kernel.MARKS) - before == marks + 2


@pytest.mark.parametrize(("ecn", "timestamps", "follows"), [(0, 0, True), (0, 1, True), (1, 1, True), (1, 0, False)])
def test_each_way_to_mark(root: None, ecn: int, timestamps: int, follows: bool) -> None:
    """With ECN the ECE bit has a meaning, and without timestamps there is nothing else to change: not followed."""
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=(PORT,))
    with framing_lab.attached(plan) as maps:
        Path("/proc/sys/net/ipv4/tcp_ecn").write_text(str(ecn))
        Path("/proc/sys/net/ipv4/tcp_timestamps").write_text(str(timestamps))
        with framing_lab.pair(port=PORT) as pair:
            for begin, end in CUT:
                assert not pair.is_ready()
                pair.send(FRAME[begin:end])
                if not follows:
                    break
            assert pair.is_ready()
            assert maps.count(kernel.MARKS) == (2 if follows else 0)
            assert maps.count(kernel.OPTED_IN) == (2 if follows else 0)


def test_an_application_opts_in_a_connection_from_before(root: None) -> None:
    """It knows that a frame begins where it has read everything. Before Linux 6.12 the socket stays a plain one."""
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=())
    with netns.throw_away(), cgroup.throw_away() as folder, framing_lab.pair() as pair:
        pair.send(b"anything")
        pair.server.recv(8)
        with framing_lab.programs_at(folder, plan) as maps:
            pair.opt_in()
            pair.send(FRAME[:100])
            followed = maps.count(kernel.OPTED_IN) == 1
            assert pair.lowat() == (len(FRAME) if followed else 1)
            pair.send(FRAME[100:])
            assert pair.is_ready()


def test_a_reader_that_is_behind_costs_no_marks(root: None) -> None:
    """While whole frames wait there is nothing to ask for: HTTP/2's HEADERS and then a DATA frame of many segments."""
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=(PORT,))
    with framing_lab.attached(plan) as maps, framing_lab.pair(port=PORT) as pair:
        pair.send(rpc_frame(0, 10))
        for at in range(0, 250, 10):
            pair.send(FRAME[at : at + 10])
        assert maps.count(kernel.MARKS) == 0
        assert pair.is_ready()


def test_what_no_program_sees_is_mended(root: None) -> None:
    """The program at the devices goes in the middle of a frame of which the reader has taken a part: the next
    acknowledgement lowers the mark, at the latest the delayed one."""
    plan = AttachmentPlan(engine=Engine.SOLO, framing="rpc", ports=(PORT,))
    with (
        netns.throw_away(),
        cgroup.throw_away() as folder,
        ExitStack() as at_devices,
        framing_lab.programs_at(folder, plan, at_devices) as maps,
        framing_lab.pair(port=PORT) as pair,
    ):
        answer_a_few(pair)
        pair.send(FRAME[:200])
        # Nothing is on its way: no probe of the sender's, no late acknowledgement will be what mends it.
        assert wait_until(lambda: unacknowledged(pair.client) == 0, DEADLINE_S)
        assert pair.server.recv(150)
        assert pair.lowat() == len(FRAME)
        at_devices.close()
        pair.client.sendall(FRAME[200:] + FRAME[:3])
        assert pair.level.poll(MENDED_S), f"stalled, SO_RCVLOWAT {pair.lowat()}"
        assert pair.lowat() == 1
        assert maps.fail_opens().unseen == 1


def answer_a_few(pair: Pair) -> None:
    """Questions and answers, so that acknowledgements are delayed."""
    for _ in range(20):
        pair.send(FRAME)
        pair.server.recv(len(FRAME))
        pair.server.sendall(rpc_frame(0, 0))
        pair.client.recv(8, socket.MSG_WAITALL)


@pytest.mark.parametrize("engine", [pytest.param(Engine.NATIVE, marks=pytest.mark.vm), Engine.SOLO])
def test_a_blocking_reader_that_takes_a_little_and_then_much(root: None, engine: Engine) -> None:
    """recv() looks at the mark when it is called: one that is too high then is not mended by lowering it later."""
    if not is_here(engine):
        return
    plan = AttachmentPlan(engine=engine, framing="rpc", ports=(PORT,))
    with framing_lab.attached(plan), framing_lab.pair(port=PORT) as pair:
        pair.server.setblocking(True)
        for _ in range(3):  # questions and answers, so that acknowledgements are delayed
            pair.send(FRAME)
            pair.server.recv(len(FRAME))
            pair.server.sendall(rpc_frame(0, 0))
            pair.client.recv(8)
        pair.send(FRAME[:100])
        assert wait_until(lambda: unacknowledged(pair.client) == 0, DEADLINE_S)
        got = [pair.server.recv(8)]
        reader = threading.Thread(target=lambda: read_all(pair.server, got, len(FRAME)))
        reader.start()
        # It has taken what was there, and sleeps until there are as many bytes as the mark said.
        assert wait_until(lambda: unread(pair.server) == 0, DEADLINE_S)
        for begin, end in ((100, 200), (200, 258)):
            pair.send(FRAME[begin:end])
        reader.join(MENDED_S)
        stalled = reader.is_alive()
        pair.client.shutdown(socket.SHUT_WR)
        reader.join()
        assert not stalled
        assert b"".join(got) == FRAME


def unread(sock: socket.socket) -> int:
    """SIOCINQ, in bytes."""
    return int(struct.unpack("=i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def read_all(sock: socket.socket, got: list[bytes], size: int) -> None:
    while sum(map(len, got)) < size:
        got.append(sock.recv(4096))
        if not got[-1]:
            return
