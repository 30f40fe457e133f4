"""bench select with few, small rounds: its structure and its proofs, not its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from reuseport_tool.bench import select as bench_select
from reuseport_tool.errors import ToolError
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import bytecode, loopback, netns, sockets
from reuseport_tool.kernel.bytecode import Verdict
from reuseport_tool.models import BenchSelect, Counters

pytestmark = pytest.mark.usefixtures("root")

ROUNDS, CONNECTIONS = 2, 150  # more than one batch


def surroundings() -> tuple[object, ...]:
    return netns.identity(), descriptors("anon_inode:bpf-stats"), os.sched_getaffinity(0), descriptors("socket:")


def runs_are_counted() -> bool:
    """Whether the kernel counts runs now, for this process or for another one."""
    with netns.throw_away(), bytecode.load(Verdict.PASS) as passing, loopback.listener(8080) as sock:
        sockets.attach_program(sock.fileno(), passing)
        loopback.connect(8080).close()
        return bool(passing.info().run_count)


def descriptors(kind: str) -> int:
    """How many this process has. One of bpf-stats keeps the kernel counting."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(kind) for link in links if os.path.lexists(link))


@pytest.fixture(scope="module")
def report() -> BenchSelect:
    before = surroundings()
    rounds: list[int] = []
    made = bench_select.select(ROUNDS, CONNECTIONS, lambda: rounds.append(1))
    assert surroundings() == before
    assert len(rounds) == ROUNDS + bench_select.STATISTICS_ROUNDS
    return made


def test_statistics_are_on_in_their_own_rounds_only() -> None:
    asked: list[int] = []
    counted: list[bool] = []

    def look() -> None:
        # The callback runs on the bench's thread, inside its namespace; this makes another one.
        asked.append(descriptors("anon_inode:bpf-stats"))
        counted.append(runs_are_counted())

    bench_select.select(ROUNDS, 10, look)
    assert asked == [0] * ROUNDS + [1] * bench_select.STATISTICS_ROUNDS
    assert all(counted[ROUNDS:])
    assert descriptors("anon_inode:bpf-stats") == 0


def test_every_program_meets_every_number_of_listeners(report: BenchSelect) -> None:
    assert [(arm.program, arm.listeners) for arm in report.arms] == [
        (name, listeners) for listeners in (1, 16, 256) for name in ("none", "bench_pass", "bench_select", "hash")
    ]
    assert (report.rounds, report.connections_per_round) == (ROUNDS, CONNECTIONS)


def test_the_base_is_one(report: BenchSelect) -> None:
    for arm in report.arms:
        if arm.program == "none":
            assert (arm.relative.low, arm.relative.median, arm.relative.high) == (1, 1, 1)
            assert (arm.ns_per_run, arm.ns_relative, arm.runs_per_connection) == (None, None, None)


def test_figures_are_plausible(report: BenchSelect) -> None:
    for arm in report.arms:
        assert 10 < arm.connections_per_s < 1_000_000
        assert arm.relative.low <= arm.relative.median <= arm.relative.high
        assert arm.cpu_relative.low <= arm.cpu_relative.median <= arm.cpu_relative.high
        if arm.program != "none":
            assert arm.ns_per_run is not None
            assert 1 < arm.ns_per_run < 100_000


def test_one_run_for_each_connection(report: BenchSelect) -> None:
    assert {arm.runs_per_connection for arm in report.arms} == {None, 1.0}


def test_run_time_is_relative_to_the_smallest_that_selects(report: BenchSelect) -> None:
    by_arm = {(arm.program, arm.listeners): arm for arm in report.arms}
    for listeners in (1, 16, 256):
        assert by_arm["bench_select", listeners].ns_relative == 1.0
        ours = by_arm["hash", listeners].ns_relative
        assert ours is not None
        assert 0.2 < ours < 20


def test_a_program_that_does_not_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_select.sockets, "attach_program", lambda *_: None)
    with pytest.raises(ToolError, match="no run"):
        bench_select.select(2, 10)


def test_counters_that_stand_still_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scratch, "counters", lambda _self: Counters())
    with pytest.raises(ToolError, match="counters differ"):
        bench_select.select(2, 10)


def test_statistics_are_off_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    before = surroundings()
    on: list[bool] = []

    def failing(*_: object) -> None:
        on.append(descriptors("anon_inode:bpf-stats"))
        raise ToolError("in the middle")

    monkeypatch.setattr(bench_select, "_statistics_round", failing)
    with pytest.raises(ToolError, match="in the middle"):
        bench_select.select(2, 10)
    assert on == [True]
    assert surroundings() == before


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reuseport_tool", "--json", "bench", "select", "--rounds", "2", "--connections", "10"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["arms"]) == 12


def test_without_rights() -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"),
            *(sys.executable, "-m", "reuseport_tool", "bench", "select"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert "CAP_" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("limit", "code"), [("-Sn 60", 0), ("-n 60", 1), ("-n 7", 1)])
def test_few_descriptors(root: None, limit: str, code: int) -> None:
    """A low soft limit is raised, a low hard one is an error."""
    command = f"{sys.executable} -m reuseport_tool bench select --rounds 2 --connections 8"
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limit}; exec {command}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert bool(code) == ("open files" in done.stderr)
    assert "Traceback" not in done.stderr
