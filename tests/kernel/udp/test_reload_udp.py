"""`reload udp://…`: every datagram is answered, by the old server or by the new one."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.kernel import diag, processes
from reuseport_tool.models import Protocol
from reuseport_tool.waiting import wait_until
from tests.tool import Tool

PORT = 5500
SERVER = [sys.executable, str(Path(__file__).parent / "udp_server.py"), str(PORT)]
ADDRESSES = ["127.0.0.1", "::1"]
ANSWER_S = 10.0
UNDER_WAY = 200  # a receive buffer of the default size has room for 277 datagrams
PORTS, GAP_S, FULL_GAP_S = 20, 0.001, 0.05

pytestmark = [pytest.mark.needs("TCP iterator", "detach from a group"), pytest.mark.slow]

Start = Callable[..., subprocess.Popen[str]]


def endpoint(address: str = "127.0.0.1") -> str:
    return f"udp://[{address}]:{PORT}" if ":" in address else f"udp://{address}:{PORT}"


@pytest.fixture
def server(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> Start:
    """Start udp_server.py and wait until it is bound."""

    def start(name: str, *options: object) -> subprocess.Popen[str]:
        process = spawn(*SERVER, name, *map(str, options), stdout=subprocess.PIPE)
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 20)
        assert readable
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@pytest.fixture(autouse=True)
def end_new_servers(in_netns: None) -> Iterator[None]:
    """End the servers that the tool started in the test's namespace."""
    yield
    held = processes.holders([entry.inode for entry in diag.bound_sockets(Protocol.UDP)])
    for pid in {holder.pid for holders in held.values() for holder in holders} - {os.getpid()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Load:
    """Sends datagrams from some ports in turn, and notes who answers each. A context manager.

    A server that gets no CPU for a while drops none: few are under way at a time.
    """

    def __init__(self, address: str = "127.0.0.1", patience_s: float = ANSWER_S, under_way: int = UNDER_WAY) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._clients = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(PORTS)]
        for client in self._clients:
            client.connect((address, PORT))
            client.setblocking(False)
        self._patience_s = patience_s
        self._under_way = under_way
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.answers: collections.Counter[str] = collections.Counter()
        self.unanswered: dict[int, float] = {}  # its number → when it was sent, in seconds since the first
        self.last: dict[int, str] = {}

    def __enter__(self) -> Load:
        self._thread.start()
        deadline = time.monotonic() + ANSWER_S
        while not self.answers and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._stop.is_set():
            self.unanswered[self.sent] = time.monotonic() - begun
            with contextlib.suppress(ConnectionRefusedError):
                self._clients[self.sent % len(self._clients)].send(b"%d" % self.sent)
            self.sent += 1
            self._read(GAP_S if self.lost() < self._under_way else FULL_GAP_S)
        deadline = time.monotonic() + self._patience_s
        while self.lost() and time.monotonic() < deadline:
            self._read(0.1)

    def _read(self, wait_s: float) -> None:
        for client in select.select(self._clients, [], [], wait_s)[0]:
            with contextlib.suppress(OSError):
                name, number = client.recv(64).decode().split()
                self.answers[name] += 1
                self.unanswered.pop(int(number), None)
                self.last[self._clients.index(client)] = name

    def lost(self) -> int:
        """Datagrams without an answer."""
        return len(self.unanswered)


def reload(tool: Tool, *options: object, new: tuple[object, ...] = ()) -> tuple[int, Any, str]:
    """Run it with a new server. Returns the exit code, the report, and stderr."""
    done = tool.run("reload", *options, "--output", "/dev/null", "--", *SERVER, "new", *new)
    return done.code, json.loads(done.out) if done.out else None, done.err


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("delay_s", [0.0, 0.4])
def test_none_loses_nothing(tool: Tool, server: Start, address: str, delay_s: float) -> None:
    options = ("--address", address, "--delay", delay_s)
    server("old", *options)
    with Load(address) as load:
        code, report, err = reload(tool, endpoint(address), "--flows", "none", new=options)
        reached = dict(load.answers)
    assert code == 0, err
    assert report["result"] == "reloaded"
    [handed_over] = report["datagrams"]
    losses = ("unread", "drops_old", "drops_new", "cut", "evicted", "by_kernel")
    assert {name: handed_over[name] for name in losses} == dict.fromkeys(losses, 0)
    assert handed_over["to_old"] > 0
    assert handed_over["to_new"] > 0
    assert set(reached) == {"old", "new"}
    assert load.unanswered == {}


def test_a_group_that_serves_both_families(tool: Tool, server: Start) -> None:
    both = ("--address", "::")
    server("old", *both)
    with Load("127.0.0.1") as ipv4, Load("::1") as ipv6:
        code, _, err = reload(tool, f"udp://[::]:{PORT}", "--flows", "none", "--settle", "0.3s", new=both)
    assert code == 0, err
    for load in (ipv4, ipv6):
        assert (set(load.answers), load.unanswered) == ({"old", "new"}, {})


def test_a_plain_restart_loses(server: Start) -> None:
    """The arm without the tool: the new server beside the old one, which is then told to stop."""
    old = server("old", "--delay", 0.4)
    with Load() as load:
        server("new", "--delay", 0.4)
        deadline = time.monotonic() + ANSWER_S
        while not load.answers["new"] and time.monotonic() < deadline:
            time.sleep(0.01)  # by then some wait for an answer of the old server
        old.terminate()
        old.wait()
    assert load.lost() > 0


_DROPPED = "until awk 'NR > 1 && $NF > 0 { found = 1 } END { exit !found }' /proc/net/udp; do sleep 0.05; done"


_WAITS = 'split($5, queue, ":"); if (queue[2] >= "00008000") found = 1'  # 32 KiB, in hexadecimal
_UNREAD = f"until awk '/:{PORT:04X} / {{ {_WAITS} }} END {{ exit !found }}' /proc/net/udp; do sleep 0.05; done"


def test_a_server_that_reads_long_after_it_has_bound(tool: Tool, server: Start, tmp_path: Path) -> None:
    """Knot DNS binds, loads its zones, and then begins to read: it gets nothing before it does."""
    server("old")
    may_read = tmp_path / "may read"
    done: list[tuple[int, Any, str]] = []
    options = (endpoint(), "--flows", "none", "--health-timeout", "60s")
    with Load() as load:
        thread = threading.Thread(target=lambda: done.append(reload(tool, *options, new=("--wait-for", may_read))))
        thread.start()
        try:
            assert wait_until(
                lambda: Path("/proc/thread-self/net/udp").read_text().count(f":{PORT:04X} 00000000:0000") == 4, 60
            )
            sent = load.sent
            assert wait_until(lambda: load.sent > sent + 1000, 60)  # more than its receive buffers hold
        finally:
            may_read.touch()
            thread.join()
    [(code, report, err)] = done
    assert (code, report["datagrams"][0]["drops_new"], load.lost()) == (0, 0, 0), err


def test_without_the_probe_its_receive_buffers_overflow(tool: Tool, server: Start, tmp_path: Path) -> None:
    """The arm that loses: what `--no-probe` leaves out. The report says so."""
    server("old")
    may_read = tmp_path / "may_read"
    options = (endpoint(), "--flows", "none", "--health-timeout", "60s", "--hook-timeout", "60s", "--no-probe")
    with Load() as load:
        code, report, err = reload(
            tool, *options, "--on-switch", f"{_DROPPED}; touch {may_read}", new=("--wait-for", may_read)
        )
    assert report["datagrams"][0]["drops_new"] > 0, err
    assert code == 1
    assert load.lost() >= report["datagrams"][0]["drops_new"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_flows_stay_until_they_end(tool: Tool, server: Start, address: str) -> None:
    server("old", "--address", address)
    tool.ok("attach", endpoint(address), "--flows", "address")
    with Load(address) as load:
        done: list[tuple[int, Any, str]] = []
        options = (endpoint(address), "--flow-timeout", "2s", "--drain-timeout", "60s")
        thread = threading.Thread(target=lambda: done.append(reload(tool, *options, new=("--address", address))))
        thread.start()
        deadline = time.monotonic() + 60
        while tool.ok("status", endpoint(address))["groups"][0]["working_generation"] != 2:
            assert time.monotonic() < deadline
        with Load(address) as later:
            pass
        assert set(later.answers) == {"new"}
        assert set(load.answers) == {"old"}
    thread.join(60)
    code, report, err = done[0]
    assert code == 0, err
    assert (report["datagrams"][0]["flows"], report["datagrams"][0]["cut"]) == ("address", 0)
    assert load.lost() == later.lost() == 0
    assert set(load.answers) == {"old"}


def test_flows_that_do_not_end_are_cut_and_said(tool: Tool, server: Start) -> None:
    server("old")
    tool.ok("attach", endpoint(), "--flows", "address")
    with Load() as load:
        code, report, _ = reload(tool, endpoint(), "--drain-timeout", "2s")
        deadline = time.monotonic() + ANSWER_S
        while set(load.last.values()) != {"new"} and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (code, report["datagrams"][0]["cut"]) == (1, 20)
    assert "20 flows on" in " ".join(report["warnings"])
    assert set(load.last.values()) == {"new"}


def test_a_map_that_is_too_small_is_said(tool: Tool, server: Start) -> None:
    server("old")
    tool.ok("attach", endpoint(), "--flows", "address", "--flow-entries", 1024)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(900)]
        for client in clients:
            client.connect(("127.0.0.1", PORT))
            client.send(b"old flow")
        done: list[tuple[int, Any, str]] = []
        options = (endpoint(), "--flow-timeout", "30s", "--drain-timeout", "6s")
        thread = threading.Thread(target=lambda: done.append(reload(tool, *options)))
        thread.start()
        deadline = time.monotonic() + 60
        while tool.ok("status", endpoint())["groups"][0]["working_generation"] != 2:
            assert time.monotonic() < deadline
        while thread.is_alive():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
                flood.sendto(b"new flow", ("127.0.0.1", PORT))
            time.sleep(0.001)
        thread.join()
    code, report, err = done[0]
    assert code == 1, err
    assert report["datagrams"][0]["evicted"] > 0


def test_a_connected_socket_is_waited_for(tool: Tool, server: Start) -> None:
    """The program does not see what reaches it, so that its flow looks idle."""
    options = ("--address", "0.0.0.0", "--connect")
    server("old", *options)
    group = endpoint("0.0.0.0")
    tool.ok("attach", group, "--flows", "address")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(ANSWER_S)
        client.connect(("127.0.0.1", PORT))

        def ask() -> bytes:
            client.send(b"ask")
            return client.recv(64)

        assert ask() == b"old ask"
        done: list[tuple[int, Any, str]] = []
        how = (group, "--flow-timeout", "1s", "--drain-timeout", "60s")
        thread = threading.Thread(target=lambda: done.append(reload(tool, *how, new=options)))
        thread.start()
        deadline = time.monotonic() + 60
        while tool.ok("status", group)["groups"][0]["working_generation"] != 2:
            assert time.monotonic() < deadline
        while tool.ok("flows", group, "--generation", 1)["flows"][0]["idle_s"] < 4:
            assert time.monotonic() < deadline
        assert thread.is_alive()
        assert ask() == b"old ask"
        client.send(b"end")
        thread.join(60)
    code, report, err = done[0]
    assert code == 0, err
    assert report["datagrams"][0]["cut"] == 0


def test_a_whole_server_is_one_transaction(tool: Tool, server: Start) -> None:
    server("old", "--tcp")
    with Load() as load, contextlib.ExitStack() as stack:
        code, report, err = reload(tool, f"tcp://127.0.0.1:{PORT}", "--flows", "none", new=("--tcp",))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", PORT), timeout=20))
        assert client.recv(16) == b"new"
    assert code == 0, err
    assert set(report["groups"]) == {f"tcp://127.0.0.1:{PORT}", endpoint()}
    assert [group["endpoint"] for group in report["datagrams"]] == [endpoint()]
    assert load.unanswered == {}


def test_a_new_server_that_does_not_open_the_udp_group_is_rolled_back(tool: Tool, server: Start) -> None:
    server("old")
    new = "import socket, time; s = socket.socket(); time.sleep(60)"
    with Load() as load:
        done = tool.run(
            *("reload", endpoint(), "--flows", "none", "--start-timeout", "2s", "--output", "/dev/null", "--"),
            *(sys.executable, "-c", new),
        )
    assert done.code == 8, done.err
    assert (set(load.answers), load.unanswered) == ({"old"}, {})


def test_a_server_that_ignores_its_sockets_is_rolled_back(tool: Tool, server: Start) -> None:
    server("old")
    options = (endpoint(), "--flows", "none", "--health-timeout", "1s")
    code, report, err = reload(tool, *options, new=("--deaf",))
    assert (code, report["result"]) == (8, "rolled-back"), err
    with Load() as load:
        pass
    assert (set(load.answers), load.unanswered) == ({"old"}, {})
    assert tool.ok("status", endpoint())["groups"][0]["program"] is None


def test_what_a_new_server_has_not_read_goes_back_to_the_old_one(tool: Tool, server: Start, tmp_path: Path) -> None:
    """It hangs after the switch, so that the reload is rolled back."""
    server("old")
    deaf = tmp_path / "deaf"
    hang = ("--on-switch", f"touch {deaf}; {_UNREAD}", "--health-command", "false", "--health-timeout", "5s")
    with Load() as load:
        code, report, err = reload(tool, endpoint(), "--flows", "none", *hang, new=("--deaf-from", deaf))
    assert (code, report["result"]) == (8, "rolled-back"), err
    [handed_over] = report["datagrams"]
    assert (handed_over["given"] > 0, handed_over["not_given"], load.unanswered) == (True, 0, {}), err


def test_a_health_datagram_must_be_answered(tool: Tool, server: Start) -> None:
    server("old")
    options = (endpoint(), "--flows", "none", "--health-timeout", "2s", "--health-datagram")
    assert reload(tool, *options, "")[0] == 8  # an empty one is never answered
    code, _, err = reload(tool, *options, "6162")
    assert code == 0, err
    tool.fails(2, "reload", endpoint(), "--flows", "none", "--health-datagram", "xyz", "--", "true")


def test_what_a_group_keeps_must_be_said(tool: Tool, server: Start) -> None:
    server("old")
    assert "belong together" in tool.fails(2, "reload", endpoint(), "--", "true")["message"]
    assert "--run" in tool.fails(2, "reload", endpoint(), "--flows", "address", "--run", "true")["message"]


def test_a_foreign_program_is_refused(tool: Tool, server: Start) -> None:
    server("old")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(("127.0.0.1", PORT))
        code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 1))
        member.setsockopt(socket.SOL_SOCKET, 51, struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))
    tool.fails(7, "reload", endpoint(), "--flows", "none", "--", *SERVER, "new")
