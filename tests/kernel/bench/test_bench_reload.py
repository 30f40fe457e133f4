"""bench reload with two rounds: that the ways which lose do lose, that the others do not, and its proofs."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.bench import close as bench_close
from reuseport_tool.bench import reload as bench_reload
from reuseport_tool.bench.load import Load
from reuseport_tool.bench.server import END_OF_ANSWER
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import libc, mib, netns, sysctl
from reuseport_tool.models import BenchReload, ReloadArm
from reuseport_tool.reload import timeline
from reuseport_tool.waiting import wait_until
from tests.tool import Tool

pytestmark = pytest.mark.needs("migration by program", "migration wakes readers")
LOSING = ("plain", "accept-drain", "haproxy -sf")
SAFE = ("haproxy -x", "sysctl", "bpf-drain", "migrate")
QUEUED = (1, 40)


@pytest.fixture(scope="module")
def report(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchReload]:
    folder = tmp_path_factory.mktemp("bpffs")
    libc.mount("bpf", str(folder), "bpf")
    try:
        before = (netns.identity(), children())
        yield bench_reload.bench(2, 64, 2, folder, QUEUED)
        assert (netns.identity(), children()) == before
        assert pins(folder) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def pins(folder: Path) -> list[str]:
    """A bpffs has two files of its own."""
    return [entry.name for entry in folder.iterdir() if not entry.name.endswith(".debug")]


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def arm(report: BenchReload, name: str) -> ReloadArm:
    return next(entry for entry in report.arms if entry.name == name)


def test_arms(report: BenchReload) -> None:
    assert {entry.name for entry in report.arms} == {*LOSING, *SAFE}
    assert [size.queued for size in report.closes] == list(QUEUED)


@pytest.mark.parametrize("name", [*LOSING, *SAFE])
def test_each_connection_is_accounted_once(report: BenchReload, name: str) -> None:
    found = arm(report, name)
    lost = found.refused + found.reset + found.unanswered + found.timed_out
    assert found.connections == found.answered + lost > 64
    assert found.longest_wait_ms is not None
    assert found.longest_wait_ms.median > 50  # the slow clients' round-trip time
    assert found.duration_s is not None
    assert 0 < found.duration_s.median < report.duration_s


@pytest.mark.parametrize("name", LOSING)
def test_a_way_that_loses(report: BenchReload, name: str) -> None:
    found = arm(report, name)
    assert found.reset > 0
    assert found.lost is not None
    assert found.lost.high > 0


@pytest.mark.parametrize("name", SAFE)
def test_a_way_that_loses_nothing(report: BenchReload, name: str) -> None:
    found = arm(report, name)
    assert found.answered == found.connections
    assert found.lost is not None
    assert found.lost.high == 0


@pytest.mark.parametrize("name", [*LOSING, *SAFE])
def test_the_kernels_count_is_that_of_the_clients(report: BenchReload, name: str) -> None:
    """A client that saw the end of a connection may still send into it, which the kernel answers by a reset, too."""
    found = arm(report, name)
    assert found.resets is not None
    reset = found.resets.total - (found.resets.refused or 0)
    assert found.reset <= reset <= found.reset + found.unanswered
    assert found.resets.refused in (None, found.refused)


def test_the_close(report: BenchReload) -> None:
    for size in report.closes:
        assert 0 < size.program_us_per_connection * size.queued < 100_000
        assert size.program_us.median == pytest.approx(size.program_us_per_connection * size.queued, rel=0.1)
        assert 0.2 < size.relative.median < 20


def test_without_haproxy(report: BenchReload, monkeypatch: pytest.MonkeyPatch, tool: Tool) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(bench_reload, "_ARMS", [entry for entry in bench_reload._ARMS if entry.name in HAPROXYS])
    arms = bench_reload.bench(2, 8, 2, tool.bpffs, (1,)).arms
    assert [(entry.name, entry.detail, entry.lost) for entry in arms] == [
        (name, "haproxy is not installed", None) for name in HAPROXYS
    ]


HAPROXYS = ("haproxy -sf", "haproxy -x")


def test_one_reload_has_queues_and_waits(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_reload, "_CANARY_STEP", "150ms")
    report, waits = bench_reload.one_reload(64, tool.bpffs)
    assert report.resets is not None
    assert report.resets.lost == 0
    assert {series.old for series in report.queues} == {True, False}
    at_s = [look.at_s for series in report.queues for look in series.looks]
    assert min(at_s) >= 0
    assert max(at_s) <= report.duration_s
    during = [wait for wait in waits if 0 <= wait.begun_at - report.begun_at <= report.duration_s]
    assert len(during) > 64
    assert max(wait.waited_s for wait in during) > 0.05  # the slow clients' round-trip time
    spans = timeline.spans(report)
    assert all(before.end_s <= after.begin_s + 0.001 for before, after in itertools.pairwise(spans))
    assert spans[-1].end_s <= report.duration_s


def test_a_reload_that_fails_ends_the_benchmark(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = bench_reload._Arm(
        name="migrate", start=bench_reload._Stage.server, reload=bench_reload._by_the_tool("no-strategy")
    )
    monkeypatch.setattr(bench_reload, "_ARMS", (failing,))
    before = children()
    with pytest.raises(ToolError, match=r"exited with 2: error: .*no-strategy"):
        bench_reload.bench(2, 64, 2, tool.bpffs, (1,))
    assert children() == before
    assert tool.bpffs is not None
    assert pins(tool.bpffs) == []


def test_a_close_that_moves_nothing_is_noticed(in_netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "changed", lambda *_: contextlib.nullcontext())
    with pytest.raises(ToolError, match=r"^0 connections are in the accept queue when close\(2\) returned, not 4"):
        bench_close.measure((4,), 2, lambda: None)


def test_a_program_that_does_not_count_is_noticed(in_netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_close._Bench, "migrated", lambda _self: 0)
    with pytest.raises(ToolError, match="did not move each connection once"):
        bench_close.measure((4,), 2, lambda: None)


def test_a_server_that_goes_is_in_the_ledger(in_netns: None) -> None:
    command = [sys.executable, "-m", "reuseport_tool.bench.server", "127.0.0.1", "8080"]
    with subprocess.Popen([*command, "--service-us", "2000"], stdin=subprocess.PIPE) as server:
        assert wait_until(lambda: bool(bench_reload._listeners(8080)), 20)
        with Load("127.0.0.1", 8080, 16, answer_end=END_OF_ANSWER) as load:
            assert wait_until(lambda: any(entry.accept_queue for entry in queue()), 20)
            server.send_signal(signal.SIGKILL)
            assert wait_until(lambda: server.poll() is not None and refused() > 0, 20)
            ledger = load.stop()
    assert ledger.refused > 0
    assert ledger.reset > 0
    assert ledger.timed_out == 0


def refused() -> int:
    """Attempts to connect that failed in this namespace."""
    return int(mib._values("snmp", "Tcp:")["AttemptFails"])


def queue() -> list[bench_reload.discover.diag.BoundSocket]:
    return bench_reload.discover.sockets_in(bench_reload._ENDPOINT)


def test_few_descriptors(tool: Tool) -> None:
    command = " ".join(tool.command("bench", "reload", "--rounds", 2, "--close-rounds", 2, as_json=False))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -Hn 1000 -Sn 1000; {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "open files are needed, and 1000 are allowed" in done.stderr
    assert "Traceback" not in done.stderr
