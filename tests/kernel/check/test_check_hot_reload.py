"""The check itself: it finds what is true of this kernel, and it does not pass when something is broken."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.check import hot_reload as check_hot_reload
from reuseport_tool.check import lab, redistribution, trial
from reuseport_tool.check.lab import Server
from reuseport_tool.check.trial import Cell, Missed, Trial
from reuseport_tool.cli.main import run
from reuseport_tool.errors import Unsupported
from reuseport_tool.group import policy as policies
from reuseport_tool.group.choice import Choice
from reuseport_tool.kernel import bpffs, mib, netns, sockets, sysctl
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.packets import Family
from reuseport_tool.models import Case, CheckedWay, ConnectionState
from tests.records import some

DEADLINE_S = 180.0  # a guest under plain emulation is ten times slower
ACCEPT_QUEUE = {ConnectionState.ESTABLISHED, ConnectionState.SYN_RECV}
SURVIVES: dict[CheckedWay, set[ConnectionState]] = {
    CheckedWay.CLOSE: set(),
    CheckedWay.ACCEPT_DRAIN: ACCEPT_QUEUE,
    CheckedWay.FD_PASSING: set(ConnectionState),
    CheckedWay.BPF_DRAIN: set(ConnectionState),
    CheckedWay.SYSCTL: set(ConnectionState),
    CheckedWay.BPF_MIGRATE: set(ConnectionState),
}


@pytest.fixture(autouse=True)
def pins(root: None) -> Iterator[Path]:
    """A bpffs folder of the test's own, in which nothing may be left."""
    folder = Place(bpffs.find_or_mount(None)) / f"test_check_{os.getpid()}"
    folder.make()
    try:
        yield Path(str(folder))
        assert folder.names() == []
    finally:
        folder.remove()


def run_cell(pins: Path, state: ConnectionState, way: CheckedWay, family: Family = Family.IPV4) -> Case:
    with lab.opened(pins) as opened:
        return check_hot_reload.run_cell(opened, Cell(state, family, way), 4)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    never = select.poll()
    while not condition():
        assert time.monotonic() < deadline
        never.poll(20)


def test_every_cell_comes_out_as_the_theory_says(pins: Path) -> None:
    steps: list[tuple[int, int]] = []
    namespace = netns.identity()

    report = check_hot_reload.check(pins, 4, progress=lambda done, total: steps.append((done, total)))

    assert [case for case in report.cases if not case.ok] == []
    assert report.ok
    survived = {(case.strategy, case.family, case.state): case.survived for case in report.cases}
    assert survived == {
        (way, family, state): 4 * (state in SURVIVES[way])
        for way in CheckedWay
        for family in Family
        for state in ConnectionState
    }
    woken = {way: {case.woken for case in report.cases if case.strategy == way} for way in CheckedWay}
    inheriting = {CheckedWay.FD_PASSING, CheckedWay.SYSCTL, CheckedWay.BPF_MIGRATE}
    assert woken == {way: {True} if way in inheriting else {None} for way in CheckedWay}
    assert steps == [(done, 48) for done in range(1, 49)]
    assert netns.identity() == namespace


def test_redistribution_by_the_program_goes_to_the_new_generation_at_once(pins: Path) -> None:
    with lab.opened(pins) as opened:
        report = redistribution.redistribute(opened, [CheckedWay.BPF_MIGRATE])
    answered = {move.queued_on: move.answered_by for move in report.moves}
    assert report.ok
    assert {answered["A"], answered["B"]} == {"C", "D"}
    assert (answered["C"], answered["D"]) == ("C", "D")
    assert not any(move.via for move in report.moves)


def test_redistribution_that_could_not_run_is_not_ok(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Choice.switch
    monkeypatch.setattr(Choice, "switch", lambda self, generation: switch(self, 1))
    with lab.opened(pins) as opened:
        report = redistribution.redistribute(opened, [CheckedWay.BPF_MIGRATE])
    assert (report.moves, report.ok) == ((), False)
    assert "not dealt out" in report.detail


def test_redistribution_with_lost_requests_is_not_ok(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "write", lambda name, value: None)
    with lab.opened(pins) as opened:
        report = redistribution.redistribute(opened, [CheckedWay.SYSCTL])
    assert {move.queued_on: move.answered_by for move in report.moves} == {"A": "-", "B": "-", "C": "C", "D": "D"}
    assert not report.ok
    assert report.detail == "sysctl: the request of A went astray; sysctl: the request of B went astray"


@pytest.mark.parametrize("state", list(ConnectionState), ids=str)
def test_without_the_program_a_cell_is_lost(
    pins: Path, monkeypatch: pytest.MonkeyPatch, state: ConnectionState
) -> None:
    monkeypatch.setattr(sockets, "attach_program", lambda fd, program: None)
    case = run_cell(pins, state, CheckedWay.BPF_MIGRATE, Family.IPV6)
    assert (case.survived, case.expected, case.woken, case.ok) == (0, "survive", None, False)
    assert "0 of 4 survived, all should" in case.detail


def test_a_survivor_that_was_to_be_lost_is_not_ok(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trial.RELOADS, CheckedWay.CLOSE, trial.RELOADS[CheckedWay.ACCEPT_DRAIN])
    case = run_cell(pins, ConnectionState.ESTABLISHED, CheckedWay.CLOSE)
    assert (case.survived, case.expected, case.ok) == (4, "lose", False)


@pytest.mark.parametrize("way", [CheckedWay.SYSCTL, CheckedWay.BPF_MIGRATE], ids=str)
def test_a_server_that_sleeps_on_is_not_ok(pins: Path, monkeypatch: pytest.MonkeyPatch, way: CheckedWay) -> None:
    monkeypatch.setattr(Server, "watch", lambda self: self._epoll.register(self.listener, 0))
    case = run_cell(pins, ConnectionState.ESTABLISHED, way)
    assert (case.survived, case.woken, case.ok) == (4, False, False)
    assert "CVE-2026-46015" in case.detail


def test_the_kernels_counts_must_agree(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mib, "read", lambda: some(mib.TcpCounters))
    case = run_cell(pins, ConnectionState.ESTABLISHED, CheckedWay.SYSCTL)
    assert (case.survived, case.ok) == (4, False)
    assert "clients say 4 migrated, the kernel 0" in case.detail


def test_the_programs_counts_must_agree(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "counters", lambda self: check_hot_reload.Counters())
    case = run_cell(pins, ConnectionState.NEW_SYN_RECV_ACK, CheckedWay.BPF_MIGRATE)
    assert (case.survived, case.ok) == (4, False)
    assert "clients say 4 migrated as new_syn_recv, the program 0 established" in case.detail


def test_a_state_that_was_not_reached_is_not_ok(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_TFO_WITHOUT_COOKIE", 0)
    monkeypatch.setattr(Trial, "deadline_s", 0.5)
    case = run_cell(pins, ConnectionState.SYN_RECV, CheckedWay.CLOSE)
    assert not case.ok
    assert case.detail == "could not run: 0 in the accept queue and 4 half-open, not 4 and 0"


def test_a_state_that_slipped_away_is_tried_again(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, calls = Trial.finish, []

    def missing_once(self: Trial) -> None:
        calls.append(self)
        if len(calls) == 1:
            raise Missed("too late")
        finish(self)

    monkeypatch.setattr(Trial, "finish", missing_once)
    assert run_cell(pins, ConnectionState.NEW_SYN_RECV_ACK, CheckedWay.BPF_MIGRATE).ok
    assert len(calls) == 2


def test_a_kernel_without_migration_is_named(pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "can_migrate", lambda: False)
    with pytest.raises(Unsupported, match="SELECT_OR_MIGRATE"):
        check_hot_reload.check(pins)
    assert check_hot_reload.check(pins, 1, [CheckedWay.CLOSE]).ok


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["another", "ours"])
def test_what_a_killed_run_left_is_removed(pins: Path, pid: int) -> None:
    """In a container its number is often ours."""
    left = Place(pins) / bpffs.HOME / lab._PINS / str(pid) / "established_ipv4_bpf-migrate" / "state"
    left.make()
    with lab.opened(pins):
        assert not left.exists()


def test_the_exit_code_tells(pins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--bpffs", str(pins), "check", "hot-reload", "--strategy", "close", "--connections", "2"]
    assert run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {case["connections"] for case in report["cases"]} == {2}
    assert len(report["cases"]) == 8

    monkeypatch.setitem(trial.RELOADS, CheckedWay.CLOSE, trial.RELOADS[CheckedWay.ACCEPT_DRAIN])
    assert run(arguments) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]


def test_ctrl_c_leaves_nothing(pins: Path) -> None:
    # A shell without job control starts what runs in the background with SIGINT ignored.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "reuseport_tool", "--bpffs", str(pins)]
    command += ["check", "hot-reload"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(pins.glob("*/*/*/*bpf-drain")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err.strip()) == (130, "", "error: interrupted")
