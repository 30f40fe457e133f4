"""Workers respawned 100 times under load: with a follower, itself killed in between, no client loses a connection.

1. A master forks workers, each of which opens a listener of its own and says when.
2. While the load runs, worker after worker is told to end, and the master forks another.
3. With the tool the follower registers each new listener; in the middle it is killed by SIGKILL, and another one
   takes up what is attached. Each listener is to be in its slot 100 ms after its listen(), by the test's own
   watch of the map, but for those that came while no follower ran.
   Follower and watch have the priority of the unit file.
4. Without the tool the very same respawns must lose connections.

Workers and clients share one CPU (restart.on_one_cpu()).
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Load
from reuseport_tool.group import places
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.waiting import wait_until
from tests.follower import Follower, prefer
from tests.servers import restart, servers
from tests.tool import Tool

WORKERS = 4
RESPAWNS = 100
CLIENTS = 64
QUEUED = 16
SOON_S = 0.1
GROUP = Endpoint(protocol=Protocol.TCP, address=servers.ADDRESS, port=servers.PORT)


class Workers:
    """The server, and the pids of its workers, oldest first."""

    def __init__(self, folder: Path) -> None:
        self._told = folder / "told"
        command = [sys.executable, "-m", "tests.servers.prefork", servers.ADDRESS, servers.PORT, WORKERS]
        with self._told.open("w") as out, restart.on_one_cpu():
            self._process = subprocess.Popen(list(map(str, command)), stdout=out, start_new_session=True)
        self.await_listeners(WORKERS)

    def listened(self) -> list[tuple[int, int, int]]:
        """(pid, cookie, nanoseconds) of every listener since the start."""
        lines = self._told.read_text().splitlines(keepends=True)
        return [tuple(map(int, line.split())) for line in lines if line.endswith("\n")]  # type: ignore[misc]

    def await_listeners(self, count: int) -> None:
        assert wait_until(lambda: len(self.listened()) >= count, 20)

    def respawn(self, number: int) -> None:
        """Tell the oldest worker to end, and wait for the next one to listen."""
        os.kill(self.listened()[number][0], signal.SIGTERM)
        self.await_listeners(WORKERS + number + 1)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


class Watch:
    """tests/servers/watch.py with the follower's priority. A context manager."""

    def __init__(self, folder: Path, told: Path) -> None:
        self._told = told
        command = [sys.executable, "-m", "tests.servers.watch", str(folder)]
        with told.open("w") as out:
            self._process = subprocess.Popen(command, stdout=out, start_new_session=True)
        prefer(self._process.pid)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def seen(self) -> dict[int, int]:
        """cookie → nanoseconds."""
        lines = self._told.read_text().splitlines(keepends=True)
        return {int(line.split()[0]): int(line.split()[1]) for line in lines if line.endswith("\n")}


@pytest.fixture
def workers(servers_end: None, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    made.end()


def clients() -> Load:
    """On the CPU of the workers."""
    with restart.on_one_cpu():
        return Load(servers.ADDRESS, servers.PORT, CLIENTS)


def test_respawned_workers_alone_lose_connections(workers: Workers) -> None:
    with clients() as load:
        for number in range(RESPAWNS):
            restart.await_queue(QUEUED)
            workers.respawn(number)
        ledger = load.stop()
    restart.assert_resets(ledger)


def test_respawned_workers_with_a_follower_lose_none(tool: Tool, workers: Workers, tmp_path: Path) -> None:
    assert tool.bpffs is not None
    with ExitStack() as stack:
        follower = stack.enter_context(Follower(tool, tmp_path, servers.PORT))
        watch = stack.enter_context(Watch(places.group_folder(tool.bpffs, GROUP), tmp_path / "seen"))
        assert wait_until(lambda: len(watch.seen()) == WORKERS, 10)
        load = stack.enter_context(clients())
        killed_ns = back_ns = 0
        for number in range(RESPAWNS):
            restart.await_queue(QUEUED)
            if number == RESPAWNS // 2:
                follower.send(signal.SIGKILL)
                killed_ns = time.monotonic_ns()
                follower = Follower(tool, tmp_path, servers.PORT)
                stack.push(follower)
            workers.respawn(number)
            if killed_ns and not back_ns and follower.events("following"):
                back_ns = time.monotonic_ns()
        ledger = load.stop()
        assert wait_until(lambda: workers.listened()[-1][1] in watch.seen(), 5)
    print(ledger)
    assert ledger.lost == 0
    assert killed_ns < back_ns
    judge(workers, watch.seen(), killed_ns, back_ns)


def judge(workers: Workers, seen: dict[int, int], killed_ns: int, back_ns: int) -> None:
    """When the listeners were registered that began to listen while a follower ran, and the last ones before."""
    delays_s, meanwhile = [], 0
    for _, cookie, began_ns in workers.listened()[WORKERS:]:
        if began_ns < killed_ns - SOON_S * 1e9 or began_ns > back_ns:
            assert cookie in seen, "closed again before it was registered"
            delays_s.append((seen[cookie] - began_ns) / 1e9)
        else:
            meanwhile += 1
    print(
        f"{len(delays_s)} registered after {statistics.median(delays_s) * 1000:.1f} ms (median), at most "
        f"{max(delays_s) * 1000:.1f} ms; {meanwhile} while no follower ran, for {(back_ns - killed_ns) / 1e9:.2f} s"
    )
    assert len(delays_s) >= RESPAWNS // 2
    assert max(delays_s) < SOON_S
