"""docs/recipes/nginx.md: nginx replaces itself, by its own means, with fewer listeners than before.

Each worker has a listener. What waits at one that goes is reset; with the program attached it moves to one that
stays, and the follower registers those that come when there are more workers again.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel import processes
from reuseport_tool.kernel.processes import Process
from reuseport_tool.waiting import wait_until
from tests.follower import Follower
from tests.servers import restart, servers
from tests.servers.servers import Server
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("servers_end")

MANY, FEW = 4, 1
ROUNDS = 3
CLIENTS = 128
QUEUED = 32


@pytest.fixture
def nginx(servers_end: None, tmp_path: Path) -> Server:
    server = servers.nginx(tmp_path, "nginx", MANY, "on")
    with restart.on_one_cpu():
        restart.start(server)
    return server


def clients() -> Load:
    with restart.on_one_cpu():
        return Load(servers.ADDRESS, servers.PORT, CLIENTS)


def reload(server: Server, folder: Path, workers: int) -> None:
    """nginx -s reload with another number of workers, until their listeners are all there are."""
    servers.configure_nginx(folder / "nginx", workers)
    subprocess.run([*server.command, "-s", "reload"], check=True)
    assert wait_until(lambda: len(servers.listeners()) == workers, 30)


def shrink_and_grow(server: Server, folder: Path) -> Ledger:
    with clients() as load:
        for _ in range(ROUNDS):
            restart.await_load(QUEUED)
            reload(server, folder, FEW)
            reload(server, folder, MANY)
        return load.stop()


def test_fewer_workers_lose_connections(nginx: Server, tmp_path: Path) -> None:
    ledger = shrink_and_grow(nginx, tmp_path)
    restart.assert_resets(ledger)


def test_fewer_workers_with_a_follower_lose_none(tool: Tool, nginx: Server, tmp_path: Path) -> None:
    with Follower(tool, tmp_path, servers.PORT) as follower:
        ledger = shrink_and_grow(nginx, tmp_path)
        registered = follower.await_event("registered", MANY + ROUNDS * (MANY - FEW))
    print(ledger, [event["delay_s"] for event in registered])
    assert ledger.lost == 0
    assert ledger.answered > ROUNDS * QUEUED
    assert tool.ok("status", servers.PORT)["groups"][0]["counters"]["migrated_established"] > 0


def upgrade(folder: Path) -> Ledger:
    """USR2 starts the new program as a child of the old one, QUIT ends the old one; the new one has fewer workers."""
    pid_file = folder / "nginx" / "nginx.pid"
    old = pid_file.read_text()
    servers.configure_nginx(folder / "nginx", FEW)
    with ExitStack() as stack:
        master = Process(int(old))
        stack.callback(master.close)
        load = stack.enter_context(clients())
        with busy_workers(int(old)):
            master.signal(signal.SIGUSR2)
            assert wait_until(lambda: pid_file.exists() and pid_file.read_text() not in ("", old), 30)
            assert wait_until(lambda: len(servers.listeners()) == MANY, 30)
            restart.await_queue(QUEUED, staying=FEW)
            master.signal(signal.SIGQUIT)
        assert wait_until(lambda: len(servers.listeners()) == FEW, 30)
        assert master.ended(timeout_s=30)
        return load.stop()


@contextmanager
def busy_workers(master: int) -> Iterator[None]:
    """The workers stand still meanwhile, as in a long request each, so that what comes to them waits for sure."""

    def workers() -> set[int]:
        return set(processes.below([master])) - {master}

    assert wait_until(lambda: len(workers()) == MANY, 30)
    with ExitStack() as stack:
        for pid in workers():
            worker = Process(pid)
            stack.callback(worker.close)
            worker.signal(signal.SIGSTOP)
            stack.callback(worker.signal, signal.SIGCONT)
        yield


def test_an_upgrade_to_fewer_workers_loses_connections(nginx: Server, tmp_path: Path) -> None:
    ledger = upgrade(tmp_path)
    restart.assert_resets(ledger)


def test_an_upgrade_to_fewer_workers_when_attached_loses_none(tool: Tool, nginx: Server, tmp_path: Path) -> None:
    tool.ok("attach", servers.PORT)
    ledger = upgrade(tmp_path)
    (group,) = tool.ok("status", servers.PORT)["groups"]
    print(ledger, group)
    assert ledger.lost == 0
    assert ledger.answered > QUEUED
    assert group["counters"]["migrated_established"] > 0
