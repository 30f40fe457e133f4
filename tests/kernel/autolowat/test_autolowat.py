"""autolowat attach, detach and status, with traffic that goes on meanwhile, and with peers of every kind."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.autolowat.attachment import Plan
from reuseport_tool.bench import rpc_framing as bench_rpc_framing
from reuseport_tool.check import framing_lab
from reuseport_tool.check import rpc_framing as check_rpc_framing
from reuseport_tool.check.framing_lab import DEADLINE_S, rpc_frame
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup
from reuseport_tool.models import Engine, Role
from reuseport_tool.waiting import wait_until
from tests.tool import Tool

pytestmark = pytest.mark.needs("AutoLOWAT paired")

PORT = 9000
FRAME = rpc_frame(100, 150)
# TCP_DELACK_MAX of 200 ms, and what a busy machine adds.
MENDED_S = 2.0


@pytest.fixture
def group(in_netns: None) -> Iterator[Path]:
    """A cgroup that the test is in."""
    with cgroup.throw_away() as folder:
        yield folder


def attach(tool: Tool, group: Path, *more: object) -> object:
    return tool.ok("autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--engine", "paired", *more)


def test_attach_status_detach(tool: Tool, group: Path) -> None:
    done = attach(tool, group, "--ports", PORT)
    assert done == {
        "cgroup": str(group),
        "engine": "paired",
        "framing": "rpc",
        "ports": [PORT],
        "role": "both",
        "result": "attached",
    }
    assert attach(tool, group, "--ports", PORT)["result"] == "unchanged"  # type: ignore[index]
    tool.fails(7, "autolowat", "attach", "--cgroup", group, "--framing", "thrift", "--engine", "paired")
    with framing_lab.pair(port=PORT) as pair:
        for begin, end in ((0, 8), (8, 100), (100, 258)):
            assert not pair.is_ready()
            pair.send(FRAME[begin:end])
        assert pair.is_ready()
        (status,) = tool.ok("autolowat", "status")["attachments"]
    assert (status["agreed"], status["opted_in"], status["sockets"], status["following"]) == (2, 2, 2, 2)
    assert (status["frames"], status["wakeups_saved"]) == (1, 2)
    assert not any(status["fail_opens"].values())
    assert tool.ok("autolowat", "detach", "--cgroup", group)["cgroup"] == str(group)
    assert tool.ok("autolowat", "status") == {"attachments": []}
    tool.fails(6, "autolowat", "detach", "--cgroup", group)


def test_refusals(tool: Tool, group: Path, tmp_path: Path) -> None:
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "morse")
    tool.fails(2, "autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--ports", "0")
    tool.fails(6, "autolowat", "attach", "--cgroup", tmp_path, "--framing", "rpc")
    attach(tool, group)
    inner = group / "inner"
    inner.mkdir()
    try:
        tool.fails(7, "autolowat", "attach", "--cgroup", inner, "--framing", "rpc", "--engine", "paired")
    finally:
        inner.rmdir()
    tool.ok("autolowat", "detach", "--cgroup", group)


def test_native_on_a_kernel_without_the_hook(tool: Tool, group: Path) -> None:
    if not kernel.missing_for_native():
        return
    for command in (("attach", "--cgroup", group, "--framing", "rpc"), None):
        words = ("autolowat", *command) if command else ("check", "rpc-framing")
        assert "BPF_SOCK_OPS_RCVQ_CB" in tool.fails(4, *words, "--engine", "native")["message"]


@pytest.mark.vm
@pytest.mark.parametrize("engine", Engine)
def test_every_case_of_the_check(root: None, engine: Engine) -> None:
    if engine is Engine.NATIVE and kernel.missing_for_native():
        return
    report = check_rpc_framing.check(engine, lambda *_: None)
    assert [case for case in report.cases if not case.ok] == []
    assert {case.family for case in report.cases} == {"ipv4", "ipv6"}


def test_check_rpc_framing(tool: Tool) -> None:
    report = tool.ok("check", "rpc-framing")
    assert report["ok"]
    assert report["engine"] == (Engine.PAIRED if kernel.missing_for_native() else Engine.NATIVE)
    assert sum(case["frames"] for case in report["cases"]) > 300
    assert all(case["stalls"] == 0 for case in report["cases"])


def test_listeners_that_were_there_before(tool: Tool, group: Path) -> None:
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        attach(tool, group, "--ports", PORT)
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            server.setblocking(False)
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
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        lasting = self._connect()
        try:
            while not self._stop.is_set() and not self.wrong:
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
        # Sleeps in select() alone: the paired engine leaves sockets that sleep in recv() at 1.
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
        try:
            for _ in range(2):
                before = traffic.frames
                attach(tool, group, "--ports", PORT)
                tool.ok("autolowat", "detach", "--cgroup", group)
                assert wait_until(lambda before=before: traffic.frames > before or bool(traffic.wrong), DEADLINE_S)  # type: ignore[misc]
        finally:
            traffic.stop()
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


def test_a_killed_attach_leaves_nothing_that_works(tool: Tool, group: Path) -> None:
    """At whatever instruction it dies: the next attach and detach find their way."""
    command = tool.command("autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--engine", "paired")
    begin = time.monotonic()
    attach(tool, group)
    whole = time.monotonic() - begin
    tool.ok("autolowat", "detach", "--cgroup", group)
    for part in range(1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(whole * part / 4)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        with framing_lab.pair() as pair:
            pair.send(FRAME[:1])
            assert pair.is_ready() or pair.lowat() == 8
        attach(tool, group)
        tool.ok("autolowat", "detach", "--cgroup", group)
    assert tool.bpffs is not None
    assert not (tool.bpffs / "reuseport-tool").exists()


@pytest.mark.vm
@pytest.mark.parametrize("engine", Engine)
def test_a_peer_without_the_tool(root: None, engine: Engine) -> None:
    """Both directions: frames arrive, and nobody but SYN and SYN+ACK carries the option."""
    if engine is Engine.NATIVE and kernel.missing_for_native():
        return
    with framing_lab.attached(Plan(engine=engine, framing="rpc", ports=(PORT,), role=Role.BOTH)) as maps:
        inside = cgroup.own()
        for foreign in ("client", "server"):
            with _capture() as packets, _pair_with(foreign, inside) as (client, server):
                for one, other in ((client, server), (server, client)):
                    for begin, end in ((0, 8), (8, 100), (100, 258)):
                        one.sendall(FRAME[begin:end])
                    taken = 0
                    while taken < len(FRAME):
                        assert select.select([other], [], [], DEADLINE_S)[0]
                        taken += len(other.recv(70))
                assert options_after_handshake(packets) == 0
        if engine is Engine.PAIRED:
            assert maps.count(kernel.AGREED) == 0
            assert maps.count(kernel.OPTED_IN) == 0


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


class _capture:
    """What passes over the loopback."""

    def __enter__(self) -> socket.socket:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.bind(("lo", 3))
        self._sock.setblocking(False)
        return self._sock

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def options_after_handshake(packets: socket.socket) -> int:
    """How many segments that are no SYN have an option of kind 254."""
    seen = captured(packets)
    assert len(seen) > 5
    return sum("S" not in segment.flags and is_marked(segment) for segment in seen)


def captured(packets: socket.socket) -> list[Any]:
    """The TCP segments since the last call."""
    from scapy.layers.inet import TCP
    from scapy.layers.l2 import Ether

    seen = []
    while True:
        try:
            packet = Ether(packets.recv(1 << 16))
        except BlockingIOError:
            return seen
        if TCP in packet:
            seen.append(packet[TCP])


def is_marked(segment: Any) -> bool:
    return any(kind == 254 for kind, _ in segment.options)


def test_only_the_boundaries_of_long_frames_are_marked(root: None) -> None:
    """A guess, that a frame will be of one segment as the one before, is corrected by the next segment."""
    single, several = [(0, 258)], [(0, 8), (8, 100), (100, 200), (200, 258)]
    with (
        framing_lab.attached(Plan(engine=Engine.PAIRED, framing="rpc", ports=(PORT,), role=Role.BOTH)),
        _capture() as packets,
    ):
        with framing_lab.pair(port=PORT) as pair:
            for cut in (single, single, single, several, several, single, single):
                for begin, end in cut:
                    pair.send(FRAME[begin:end])
                assert pair.server.recv(1000) == FRAME
            port = pair.client.getsockname()[1]
        data = [segment for segment in captured(packets) if segment.sport == port and len(segment.payload)]
    # The loopback shows each twice.
    assert [is_marked(segment) for segment in data[::2]] == [
        *(True, False, False),  # the first segment also tells the server that the client has the tool
        *(False, True, False, True),
        *(True, False, False, True),
        *(True, False),
    ]


def test_the_capture_sees_the_option_between_two_with_the_tool(root: None) -> None:
    with (
        framing_lab.attached(Plan(engine=Engine.PAIRED, framing="rpc", ports=(), role=Role.BOTH)),
        _capture() as packets,
    ):
        with framing_lab.pair() as pair:
            for _ in range(6):
                pair.send(FRAME)
        assert options_after_handshake(packets) >= 6


@pytest.mark.parametrize("ports", [(), (PORT,)], ids=["opted in", "by port"])
def test_a_sender_that_stops_marking_in_the_middle(root: None, ports: tuple[int, ...]) -> None:
    """The reader is given everything, at the latest with the delayed acknowledgement."""
    with (
        framing_lab.attached(Plan(engine=Engine.PAIRED, framing="rpc", ports=ports, role=Role.BOTH)) as maps,
        framing_lab.pair(port=PORT) as pair,
    ):
        if not ports:
            pair.opt_in()
        for _ in range(20):  # questions and answers, so that acknowledgements are delayed
            pair.send(FRAME)
            pair.server.recv(len(FRAME))
            pair.server.sendall(rpc_frame(0, 0))
            pair.client.recv(8, socket.MSG_WAITALL)
        pair.send(FRAME[:200])
        # Nothing is on its way: no probe of the sender's, no late acknowledgement will be what mends it.
        assert wait_until(lambda: unacknowledged(pair.client) == 0, DEADLINE_S)
        assert pair.server.recv(150)
        assert pair.lowat() == len(FRAME)
        # What the sender's program knows of it; the key of a socket storage is a descriptor.
        maps.sockets.delete(pair.client.fileno())
        begin = time.monotonic()
        pair.client.sendall(FRAME[200:] + FRAME[:3])
        assert pair.level.poll(MENDED_S), f"stalled, SO_RCVLOWAT {pair.lowat()}"
        print(f"mended after {(time.monotonic() - begin) * 1000:.1f} ms")
        assert pair.lowat() == 1
        assert maps.fail_opens().unmarked == 1


@pytest.mark.vm
@pytest.mark.parametrize("engine", Engine)
def test_a_blocking_reader_that_takes_a_little_and_then_much(root: None, engine: Engine) -> None:
    """recv() looks at the mark when it is called: one that is too high then is not mended by lowering it later."""
    if engine is Engine.NATIVE and kernel.missing_for_native():
        return
    with (
        framing_lab.attached(Plan(engine=engine, framing="rpc", ports=(PORT,), role=Role.BOTH)),
        framing_lab.pair(port=PORT) as pair,
    ):
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
    assert wakeups["paired"] < wakeups["off"]
    assert {arm.name for arm in single.arms} == set(wakeups) >= {"off", "rcvlowat", "paired"}
    assert all(arm.wakeups_per_frame >= 1 for size in (single, several) for arm in size.arms)


def test_bench_on_more_cpus_than_there_are(root: None) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        with pytest.raises(ToolError, match="2 CPUs are needed, and this process may use 1"):
            bench_rpc_framing.bench(2, 2, lambda *_: None)
    finally:
        os.sched_setaffinity(0, allowed)
