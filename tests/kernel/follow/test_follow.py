"""attach --follow: who is registered, who is not, and what may go wrong meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.errors import NotFound
from reuseport_tool.group import places
from reuseport_tool.group.state import State
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.waiting import wait_until
from tests.follower import Follower
from tests.kernel.conftest import PORT, ask, server_command
from tests.servers import restart, servers
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("servers_end")

GROUP = Endpoint(protocol=Protocol.TCP, address="127.0.0.1", port=PORT)
SOON_S = 0.1
IDLE_S = 3.0
DEADLINE_S = 60.0

Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def prefork(tool: Tool, spawn: Spawn) -> Callable[[int], subprocess.Popen[str]]:
    """Start a server of tests/servers/prefork.py with so many workers."""

    def start(workers: int) -> subprocess.Popen[str]:
        process = spawn(
            *(sys.executable, "-m", "tests.servers.prefork", "127.0.0.1", PORT, workers), stdout=subprocess.PIPE
        )
        for _ in range(workers):
            born(process)
        return process

    return start


def born(server: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Pid, cookie and time of listen() of the next worker."""
    assert server.stdout is not None
    pid, cookie, nanoseconds = map(int, server.stdout.readline().split())
    return pid, cookie, nanoseconds


def listeners(tool: Tool) -> dict[int, tuple[int | None, str]]:
    """cookie → generation and flag."""
    groups = tool.ok("status", PORT)["groups"]
    return {entry["cookie"]: (entry["generation"], entry["flag"]) for entry in groups[0]["listeners"]}


def registered(tool: Tool) -> set[int]:
    assert tool.bpffs is not None
    with State.open(places.group_folder(tool.bpffs, GROUP)) as opened:
        return opened.generations.registered()


def registered_so_far(tool: Tool) -> set[int]:
    """As registered(), also before anything is attached."""
    with contextlib.suppress(NotFound, FileNotFoundError):
        return registered(tool)
    return set()


def workers_now() -> list[int]:
    """The processes that hold a listener."""
    return [holder.pid for member in servers.listeners(PORT) for holder in member.holders]


def bind(kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A listener of the test's own."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", PORT))
    if kind == socket.SOCK_STREAM:
        sock.listen(16)
    return sock


def test_a_respawned_worker_is_registered_and_a_stranger_is_not(
    tool: Tool, tmp_path: Path, prefork: Callable[[int], Any], server: Callable[..., Any]
) -> None:
    workers = prefork(2)
    with Follower(tool, tmp_path, PORT) as follower:
        victim = follower.events("registered")[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        pid, cookie, _ = born(workers)
        last = follower.await_event("registered", 3)[-1]
        assert (last["pid"], last["cookie"], last["generation"]) == (pid, cookie, 1)
        assert last["slot"] in (0, 1)  # the dead one's
        assert last["delay_s"] > 0
        assert 0 <= time.time() - last["at"] < 60
        server("stranger")
        left = follower.await_event("left-alone")[0]
        assert listeners(tool)[left["cookie"]] == (None, "foreign")
        assert follower.stop() == 0
        assert follower.events()[-1]["event"] == "stopped"
    assert sorted(flag for _, flag in listeners(tool).values()) == ["foreign", "working", "working"]


def test_nobody_reads_what_it_prints(tool: Tool, spawn: Spawn, prefork: Callable[[int], Any]) -> None:
    """A full pipe, or a terminal after Ctrl-S: it registers what comes all the same."""
    workers = prefork(2)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    spawn(*tool.command("attach", PORT, "--follow"), stdout=writer)
    assert wait_until(lambda: len(registered_so_far(tool)) == 2, DEADLINE_S)
    os.kill(workers_now()[0], signal.SIGKILL)
    _, cookie, _ = born(workers)
    assert wait_until(lambda: cookie in registered(tool), DEADLINE_S)
    for end in (reader, writer):
        os.close(end)


def test_it_may_begin_before_the_server_and_again_after_it(
    tool: Tool, tmp_path: Path, server: Callable[..., Any]
) -> None:
    with Follower(tool, tmp_path, PORT) as follower:
        assert not follower.events("attached")
        for name in ("first", "second"):
            process = server(name)
            follower.await_event("attached", 1 if name == "first" else 2)
            assert ask() == name
            assert [flag for _, flag in listeners(tool).values()] == ["working"]
            process.terminate()
            process.wait()


def test_the_first_listener_of_a_group_is_soon_registered(
    tool: Tool, tmp_path: Path, server: Callable[..., Any]
) -> None:
    """A program is loaded by then."""
    delays_s = []
    for number in range(5):
        with Follower(tool, tmp_path, PORT) as follower:
            process = server(f"first {number}")
            follower.await_event("attached")
            delays_s.append(follower.await_event("registered")[-1]["delay_s"])
        process.terminate()
        process.wait()
        tool.ok("detach", PORT)
    print(delays_s)
    assert max(delays_s) < SOON_S


def test_a_lone_worker_is_soon_registered(tool: Tool, tmp_path: Path, prefork: Callable[[int], Any]) -> None:
    """The group is gone with its only listener; the next one is new to the kernel and gets the pinned program."""
    workers = prefork(1)
    with Follower(tool, tmp_path, PORT) as follower:
        for number in range(2, 6):
            os.kill(workers_now()[0], signal.SIGKILL)
            _, cookie, _ = born(workers)
            last = follower.await_event("registered", number)[-1]
            assert last["cookie"] == cookie
            assert last["delay_s"] < SOON_S
            assert tool.ok("status", PORT)["groups"][0]["program"]["policy"] == "hash"


def test_a_new_server_is_left_to_the_reload(
    tool: Tool, tmp_path: Path, server: Callable[..., Any], prefork: Callable[[int], Any]
) -> None:
    prefork(2)
    with Follower(tool, tmp_path, PORT) as follower:
        new = server("new")
        follower.await_event("left-alone")
        report = tool.ok("reload", PORT, "--new-pid", new.pid)
        assert report["new"]["generation"] == 2
        assert registered(tool) == set(report["new"]["listeners"])
        assert len(follower.events("registered")) == 2


def test_a_reload_takes_a_new_server_that_was_registered_with_the_old(
    tool: Tool, server: Callable[..., Any], prefork: Callable[[int], Any]
) -> None:
    prefork(1)
    new = server("new")
    tool.ok("attach", PORT)
    assert {generation for generation, _ in listeners(tool).values()} == {1}
    report = tool.ok("reload", PORT, "--new-pid", new.pid, "--old-pid", restart.owners_of_port(PORT, besides=new.pid))
    assert listeners(tool) == {report["new"]["listeners"][0]: (2, "working")}
    assert ask() == "new"


def test_nothing_is_registered_while_the_group_is_locked(
    tool: Tool, tmp_path: Path, prefork: Callable[[int], Any]
) -> None:
    workers = prefork(2)
    assert tool.bpffs is not None
    with Follower(tool, tmp_path, PORT) as follower:
        with places.locked(tool.bpffs, GROUP):
            os.kill(follower.events("registered")[0]["pid"], signal.SIGKILL)
            _, cookie, _ = born(workers)
            waiting = follower.await_event("locked")[0]
            assert str(os.getpid()) in waiting["detail"]
            assert cookie not in registered(tool)
        follower.await_event("registered", 3)
        assert cookie in registered(tool)


def test_a_reload_and_its_workers_under_a_follower(
    tool: Tool, tmp_path: Path, prefork: Callable[[int], Any], end_owners: None
) -> None:
    prefork(2)
    command = [sys.executable, "-m", "tests.servers.prefork", "127.0.0.1", PORT, 2]
    with Follower(tool, tmp_path, PORT) as follower:
        report = tool.ok("reload", PORT, "--listeners", 2, "--output", tmp_path / "new", "--", *command)
        assert len(follower.events("registered")) == 2  # the reload did the others itself
        assert registered(tool) == set(report["new"]["listeners"])
        victim = int((tmp_path / "new").read_text().split()[0])
        os.kill(victim, signal.SIGKILL)
        last = follower.await_event("registered", 3)[-1]
        assert last["generation"] == 2
        assert len(registered(tool)) == 2


def test_an_old_master_that_stays_does_not_come_back(
    tool: Tool, tmp_path: Path, prefork: Callable[[int], Any], server: Callable[..., Any]
) -> None:
    old = prefork(2)
    tool.ok("attach", PORT)
    new = server("new")
    tool.ok("map", "add", PORT, "--generation", 2, "--pid", new.pid)
    tool.ok("map", "switch", PORT, 2)
    with Follower(tool, tmp_path, PORT) as follower:
        generations = listeners(tool)
        victim = next(pid for pid in workers_now() if pid != new.pid)
        os.kill(victim, signal.SIGKILL)
        _, cookie, _ = born(old)
        left = follower.await_event("left-alone")[0]
        assert left["cookie"] == cookie
        assert cookie not in generations
        assert listeners(tool)[cookie] == (None, "foreign")


@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_after_a_killed_reload(tool: Tool, tmp_path: Path, prefork: Callable[[int], Any], begun: str) -> None:
    """The working generation goes on; where it has no listener left, nothing is made up."""
    workers = prefork(2)
    tool.ok("attach", PORT)
    assert tool.bpffs is not None
    journal = places.group_folder(tool.bpffs, GROUP) / places.JOURNAL
    if begun == "before":
        journal.make()
    with Follower(tool, tmp_path, PORT) as follower:
        journal.make()
        os.kill(workers_now()[0], signal.SIGKILL)
        _, cookie, _ = born(workers)
        assert follower.await_event("registered")[-1]["cookie"] == cookie
        workers.kill()
        for pid in workers_now():
            os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not servers.listeners(PORT), 10)
        with bind():
            assert "interrupted" in follower.await_event("failed")[0]["detail"]
            assert registered(tool) == set()
    journal.remove()


def test_udp(tool: Tool, tmp_path: Path) -> None:
    endpoint = f"udp://{PORT}"
    with ExitStack() as stack, Follower(tool, tmp_path, endpoint) as follower:
        for count in (1, 2):
            stack.enter_context(bind(socket.SOCK_DGRAM))
            follower.await_event("registered", count)
        groups = tool.ok("status", endpoint)["groups"]
        assert [entry["flag"] for entry in groups[0]["listeners"]] == ["working", "working"]


def test_detached_meanwhile(tool: Tool, tmp_path: Path, prefork: Callable[[int], Any]) -> None:
    workers = prefork(2)
    with Follower(tool, tmp_path, PORT) as follower:
        victim = follower.events("registered")[0]["pid"]
        tool.ok("detach", PORT)
        os.kill(victim, signal.SIGKILL)
        born(workers)
        follower.await_event("detached")
        assert len(follower.events("attached")) == 1
        tool.ok("attach", PORT)
        os.kill(workers_now()[0], signal.SIGKILL)
        _, cookie, _ = born(workers)
        assert follower.await_event("registered", 3)[-1]["cookie"] == cookie


def test_it_costs_nothing_while_nothing_happens(tool: Tool, tmp_path: Path, prefork: Callable[[int], Any]) -> None:
    prefork(2)
    with Follower(tool, tmp_path, PORT) as follower:
        before = follower.cost()
        time.sleep(IDLE_S)  # what is measured is a time in which nothing happens
        after = follower.cost()
        print(f"{after[0] - before[0]:.3f} CPU s and {after[1] - before[1]} context switches in {IDLE_S} s")
        assert after == before


def test_it_tells_its_manager(tool: Tool, tmp_path: Path, prefork: Callable[[int], Any]) -> None:
    prefork(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Follower(tool, tmp_path, PORT, **environment) as follower:
            first = manager.recv(4096).decode().splitlines()
            assert first[0] == "READY=1"
            assert first[1].startswith(f"STATUS=following tcp://*:{PORT}: tcp://127.0.0.1:{PORT}")
            assert manager.recv(4096) == b"WATCHDOG=1"
            follower.send(signal.SIGTERM)
            rest = [manager.recv(4096)]
            while rest[-1] != b"STOPPING=1":
                rest.append(manager.recv(4096))
            assert set(rest[:-1]) <= {b"WATCHDOG=1"}


def test_what_cannot_be_followed(tool: Tool, tmp_path: Path, spawn: Spawn) -> None:
    tool.fails(2, "attach", PORT, "--follow", "--program", tmp_path / "none.c")
    tool.fails(2, "attach", PORT, "--follow", "--policy", "hash", "--program", tmp_path / "none.c")
    process = spawn(*server_command("plain", "--no-reuseport"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert "SO_REUSEPORT" in tool.fails(1, "attach", PORT, "--follow")["message"]
