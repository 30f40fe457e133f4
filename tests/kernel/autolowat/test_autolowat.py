"""autolowat attach, detach and status, with traffic that goes on meanwhile, and with peers of every kind."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.bench import rpc_framing as bench_rpc_framing
from reuseport_tool.check import framing_lab
from reuseport_tool.check import rpc_framing as check_rpc_framing
from reuseport_tool.check.framing_lab import DEADLINE_S, Pair, rpc_frame
from reuseport_tool.check.udp_load import Background
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup, netns
from reuseport_tool.models import Engine
from reuseport_tool.waiting import wait_until
from tests.tool import Tool

pytestmark = pytest.mark.needs("AutoLOWAT solo")

PORT = 9000
FRAME = rpc_frame(100, 150)
CUT = ((0, 8), (8, 100), (100, 258))
# TCP_DELACK_MAX of 200 ms, and what a busy machine adds.
MENDED_S = 2.0


@pytest.fixture
def group(in_netns: None) -> Iterator[Path]:
    """A cgroup that the test is in."""
    with cgroup.throw_away() as folder:
        yield folder


def attach(tool: Tool, group: Path, *more: object) -> dict[str, object]:
    done = tool.ok("autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--engine", "solo", *more)
    assert isinstance(done, dict)
    return done


def is_here(engine: Engine) -> bool:
    return engine is Engine.SOLO or not kernel.missing_for_native()


def test_attach_status_detach(tool: Tool, group: Path) -> None:
    done = attach(tool, group, "--ports", PORT)
    assert done == {
        "cgroup": str(group),
        "engine": "solo",
        "framing": "rpc",
        "ports": [PORT],
        "devices": ["lo"],
        "result": "attached",
    }
    assert attach(tool, group, "--ports", PORT)["result"] == "unchanged"
    tool.fails(7, "autolowat", "attach", "--cgroup", group, "--framing", "thrift", "--engine", "solo")
    with framing_lab.pair(port=PORT) as pair:
        for begin, end in CUT:
            assert not pair.is_ready()
            pair.send(FRAME[begin:end])
        assert pair.is_ready()
        (status,) = tool.ok("autolowat", "status")["attachments"]
    assert (status["opted_in"], status["sockets"], status["following"], status["devices"]) == (2, 2, 2, ["lo"])
    assert (status["frames"], status["wakeups_saved"], status["marks"]) == (1, 2, 2)
    assert not any(status["fail_opens"].values())
    assert tool.ok("autolowat", "detach", "--cgroup", group)["cgroup"] == str(group)
    assert tool.ok("autolowat", "status") == {"attachments": []}
    tool.fails(6, "autolowat", "detach", "--cgroup", group)


def test_refusals(tool: Tool, group: Path, tmp_path: Path) -> None:
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "morse")
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--ports", "0")
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--ports", "1-9000")
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--engine", "paired")
    tool.fails(6, "autolowat", "attach", "--cgroup", tmp_path, "--framing", "rpc")
    attach(tool, group)
    inner = group / "inner"
    inner.mkdir()
    try:
        tool.fails(7, "autolowat", "attach", "--cgroup", inner, "--framing", "rpc", "--engine", "solo")
    finally:
        inner.rmdir()
    tool.ok("autolowat", "detach", "--cgroup", group)


def test_native_on_a_kernel_without_the_hook(tool: Tool, group: Path) -> None:
    if not kernel.missing_for_native():
        return
    for command in (("attach", "--cgroup", group, "--framing", "rpc"), None):
        words = ("autolowat", *command) if command else ("check", "rpc-framing")
        assert "BPF_SOCK_OPS_RCVQ_CB" in tool.fails(4, *words, "--engine", "native")["message"]


@pytest.mark.parametrize("engine", [pytest.param(Engine.NATIVE, marks=pytest.mark.vm), Engine.SOLO])
def test_every_case_of_the_check(root: None, engine: Engine) -> None:
    if not is_here(engine):
        return
    report = check_rpc_framing.check(engine, lambda *_: None)
    assert [case for case in report.cases if not case.ok] == []
    assert {case.family for case in report.cases} == {"ipv4", "ipv6"}


def test_check_rpc_framing(tool: Tool) -> None:
    report = tool.ok("check", "rpc-framing")
    assert report["ok"]
    assert report["engine"] == (Engine.SOLO if kernel.missing_for_native() else Engine.NATIVE)
    assert sum(case["frames"] for case in report["cases"]) > 300
    assert all(case["stalls"] == 0 for case in report["cases"])


def test_listeners_that_were_there_before(tool: Tool, group: Path) -> None:
    """Their new connections are followed; a connection that was there before is left alone."""
    with socket.create_server(("127.0.0.1", PORT)) as listener, framing_lab.pair() as before:
        attach(tool, group, "--ports", f"{PORT},{before.client.getpeername()[1]}")
        before.send(FRAME[:100])
        assert before.is_ready()
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            server.setblocking(False)
            with select.epoll() as waiting:
                waiting.register(server, select.EPOLLIN)
                client.sendall(FRAME[:8])
                assert wait_until(lambda: lowat(server) == len(FRAME), DEADLINE_S)
        tool.ok("autolowat", "detach", "--cgroup", group)


def lowat(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


def unacknowledged(sock: socket.socket) -> int:
    """tcpi_unacked, in segments."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 24)[0])


class Traffic:
    """Frames in three segments each, over connections that live on and ones that are new."""

    def __init__(self, listener: socket.socket) -> None:
        self.frames, self.wrong = 0, ""
        self.servers: list[socket.socket] = []
        self._listener = listener

    def run(self, stop: threading.Event) -> None:
        lasting = self._connect()
        try:
            while not stop.is_set() and not self.wrong:
                fresh = self._connect()
                for client, server in (lasting, fresh):
                    self._exchange(client, server)
                fresh[0].close()
                fresh[1].close()
        except OSError as error:
            self.wrong = str(error)
        self._exchange(*lasting)
        lasting[0].sendall(FRAME[:20])
        self.servers = list(lasting)

    def _connect(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(self._listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = self._listener.accept()[0]
        # Sleeps in select() alone: the engine solo leaves sockets that sleep in recv() at 1.
        client.setblocking(False)
        server.setblocking(False)
        return client, server

    def _exchange(self, client: socket.socket, server: socket.socket) -> None:
        for one, other in ((client, server), (server, client)):
            for begin, end in ((0, 8), (8, 100), (100, 258)):
                one.sendall(FRAME[begin:end])
            taken = 0
            while taken < len(FRAME):
                if not select.select([other], [], [], MENDED_S)[0]:
                    self.wrong = f"stalled at {taken} of {len(FRAME)}, SO_RCVLOWAT {lowat(other)}"
                    return
                # Less than a frame, so that the mark is often that of another place.
                taken += len(other.recv(70))
            self.frames += 1


def test_traffic_goes_on_while_attach_and_detach_run(tool: Tool, group: Path) -> None:
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        traffic = Traffic(listener)
        with Background(traffic.run):
            for _ in range(2):
                before = traffic.frames
                attach(tool, group, "--ports", PORT)
                tool.ok("autolowat", "detach", "--cgroup", group)
                assert wait_until(lambda before=before: traffic.frames > before or bool(traffic.wrong), DEADLINE_S)  # type: ignore[misc]
        assert traffic.wrong == ""
        assert [lowat(sock) for sock in traffic.servers] == [1, 1]
        # Nobody follows: a part of a frame wakes the reader.
        assert select.select([traffic.servers[1]], [], [], MENDED_S)[0]
        for sock in traffic.servers:
            sock.close()


def test_detach_lowers_every_mark(tool: Tool, group: Path) -> None:
    attach(tool, group, "--ports", PORT)
    with framing_lab.pair(port=PORT) as pair:
        pair.send(FRAME[:100])
        assert pair.lowat() == len(FRAME)
        assert not pair.is_ready()
        assert tool.ok("autolowat", "detach", "--cgroup", group)["sockets"] == 2
        assert pair.lowat() == 1
        assert pair.is_ready()
        pair.server.recv(100)
        pair.send(FRAME[100:101])
        assert pair.is_ready()


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


def test_bench(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # A frame larger than the receive buffer: a plain reader must be woken for it more than once, however busy the CPU.
    monkeypatch.setattr(bench_rpc_framing, "SIZES", ((64, 1, 20), (1 << 20, 64, 5)))
    allowed = os.sched_getaffinity(0)
    single, several = bench_rpc_framing.bench(5, 1, lambda *_: None).sizes
    assert os.sched_getaffinity(0) == allowed
    wakeups = {arm.name: arm.wakeups_per_frame for arm in several.arms}
    assert wakeups["solo"] < wakeups["off"]
    assert {arm.name for arm in single.arms} == set(wakeups) >= {"off", "rcvlowat", "solo"}
    assert all(arm.wakeups_per_frame >= 1 for size in (single, several) for arm in size.arms)


def test_bench_on_more_cpus_than_there_are(root: None) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        with pytest.raises(ToolError, match="2 CPUs are needed, and this process may use 1"):
            bench_rpc_framing.bench(2, 2, lambda *_: None)
    finally:
        os.sched_setaffinity(0, allowed)
