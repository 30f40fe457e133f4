"""autolowat attach, detach and status, with traffic that goes on meanwhile."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import DEADLINE_S
from reuseport_tool.check.udp_load import Background
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup
from reuseport_tool.waiting import wait_until
from tests.kernel.autolowat.frames import CUT, FRAME, MENDED_S, PORT
from tests.tool import Tool

pytestmark = pytest.mark.needs("AutoLOWAT solo")


@pytest.fixture
def group(in_netns: None) -> Iterator[Path]:
    """A cgroup that the test is in."""
    with cgroup.throw_away() as folder:
        yield folder


def attach(tool: Tool, group: Path, *more: object) -> dict[str, object]:
    done = tool.ok("autolowat", "attach", "--cgroup", group, "--framing", "rpc", "--engine", "solo", *more)
    assert isinstance(done, dict)
    return done


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
