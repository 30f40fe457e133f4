"""The reload, with small servers: what it saves, and that whatever fails leaves all as it was."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from reuseport_tool.errors import Interrupted
from reuseport_tool.models import Step, parse_endpoint
from reuseport_tool.reload import transaction as reload
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT, Clients, ask, begin_reload, server_command, snapshot, until
from tests.tool import Tool

pytestmark = [
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
QUEUED = 50
Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.vm
def test_without_the_tool_the_queue_is_lost(server: Start, clients: Clients) -> None:
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    server("new")
    old.terminate()
    old.wait()
    assert clients.answers() == {"reset": QUEUED}


@pytest.mark.vm
def test_queued_connections_reach_the_new_generation(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf")
    clients.connect(QUEUED)
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    assert clients.answers() == {"new": QUEUED}
    assert report["result"] == "reloaded"
    assert report["strategy"] == "migrate"
    assert report["queued_at_stop"] == {"accept_queue": QUEUED, "half_open": 0}
    # Counted twice: by the program, and by the kernel.
    assert report["migrated"] == {"established": QUEUED, "syn_recv": 0, "new_syn_recv": 0, "total": QUEUED}
    assert report["lost"] == {"migrate_failures": 0, "listen_drops": 0, "listen_overflows": 0, "aborted_accepted": 0}
    assert 0 < report["switch_us"] < 10_000


def test_every_new_listener_gets_its_share(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf", "--listeners", 4)
    clients.connect(QUEUED)
    report = tool.ok("reload", PORT, "--listeners", 8, "--no-probe", "--", *server_command("new", "--listeners", 8))
    assert clients.answers() == {"new": QUEUED}
    assert len(report["old"]["listeners"]) == 4
    assert len(report["new"]["listeners"]) == 8
    generation = tool.ok("map", "show", PORT)["maps"]
    assert [entry["generation"] for entry in generation] == [2]
    assert sorted(slot["cookie"] for slot in generation[0]["slots"]) == sorted(report["new"]["listeners"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_new_pid(tool: Tool, server: Start, clients: Clients, address: str) -> None:
    server("old", "--deaf", "--address", address)
    clients.connect(QUEUED, address=address)
    new = server("new", "--address", address)
    report = tool.ok("reload", PORT, "--new-pid", new.pid)
    assert clients.answers() == {"new": QUEUED}
    assert report["new"]["pids"] == [new.pid]


def test_run_saves_even_a_restart_without_overlap(tool: Tool, server: Start, clients: Clients) -> None:
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    tool.ok("attach", PORT)
    new = " ".join(server_command("new"))
    restart = f"kill {old.pid}; while kill -0 {old.pid} 2>/dev/null; do sleep 0.01; done; {new} >/dev/null & sleep 0.1"
    # The old server is a child of this test: reap it, so that `kill -0` sees it gone.
    process = subprocess.Popen(tool.command("reload", PORT, "--run", restart), stdout=subprocess.DEVNULL)
    old.wait()
    assert process.wait(timeout=60) == 0
    assert clients.answers() == {"new": QUEUED}


def test_run_with_inherited_listeners_changes_nothing(tool: Tool, server: Start) -> None:
    server("same")
    report = tool.ok("reload", PORT, "--run", "true")
    assert report["new"]["listeners"] == report["old"]["listeners"] or report["old"]["listeners"] == []
    assert ask() == "same"


@pytest.mark.parametrize("strategy", ["migrate", "sysctl"])
def test_strategies_that_move_the_queue(tool: Tool, server: Start, clients: Clients, strategy: str) -> None:
    server("old", "--deaf")
    clients.connect(QUEUED)
    report = tool.ok("reload", PORT, "--no-probe", "--strategy", strategy, "--", *server_command("new"))
    assert clients.answers() == {"new": QUEUED}
    assert report["migrated"]["total"] == QUEUED
    assert tool.ok("migrate-req")["enabled"] is False


@pytest.mark.vm
def test_late_attach_saves_what_is_queued(tool: Tool, server: Start, clients: Clients) -> None:
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    tool.ok("attach", PORT)
    server("new")
    tool.ok("map", "add", PORT, "--generation", 2)
    tool.ok("map", "switch", PORT, 2)
    old.terminate()
    old.wait()
    assert clients.answers() == {"new": QUEUED}
    counters = tool.ok("status", PORT)["groups"][0]["counters"]
    assert counters["migrated_established"] == QUEUED


def test_generations_follow_each_other(tool: Tool, server: Start, clients: Clients) -> None:
    server("0", "--deaf")
    for number in range(1, 20):
        clients.connect(3)
        options = ("--listeners", number % 3 + 1, "--deaf")
        listeners = ("--listeners", number % 3 + 1)
        report = tool.ok("reload", PORT, "--no-probe", *listeners, "--", *server_command(str(number), *options))
        assert report["new"]["generation"] == number + 1
        assert report["migrated"]["total"] == number * 3
    report = tool.ok("reload", PORT, "--", *server_command("last"))
    assert clients.answers() == {"last": 19 * 3}


def test_listeners_of_a_bare_port_in_both_families(tool: Tool, server: Start, clients: Clients) -> None:
    four, six = server("old", "--deaf"), server("old", "--deaf", "--address", "::1")
    clients.connect(5)
    clients.connect(5, address="::1")
    command = f"{' '.join(server_command('new'))} & exec {' '.join(server_command('new', '--address', '::1'))}"
    report = tool.ok("reload", PORT, "--", "sh", "-c", command)
    assert clients.answers() == {"new": 10}
    assert report["old"]["pids"] == sorted([four.pid, six.pid])


BAD_COMMANDS = {
    "exits": (("--exit", 3), "exited with 3"),
    "ended": (("--exit", 0), "has ended without a listener"),
    "mute": (("--mute",), "no new listener"),
    "deaf": (("--deaf",), "does not accept"),
    "other uid": (("--uid", 65534), "exited with 1"),
    "no reuseport": (("--no-reuseport",), "exited with 1"),
    "save_syn": (("--save-syn",), "save_syn is 0 on the old listeners and 1 on the new"),
    "small backlog": (("--backlog", 1), "50 connections wait"),
}


@pytest.mark.parametrize("attached", [False, True], ids=["fresh", "attached"])
@pytest.mark.parametrize("bad", BAD_COMMANDS)
def test_a_bad_new_side_changes_nothing(tool: Tool, server: Start, clients: Clients, bad: str, attached: bool) -> None:
    options, message = BAD_COMMANDS[bad]
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    if attached:
        tool.ok("attach", PORT)
    before = snapshot(tool)
    timeouts = ("--start-timeout", 2 if bad == "mute" else 30, "--health-timeout", 1)
    error = tool.fails(8, "reload", PORT, *timeouts, "--", *server_command("new", *options))
    assert message in error["message"]
    assert error["hint"]
    assert snapshot_without_queues(snapshot(tool)) == snapshot_without_queues(before)
    assert old.poll() is None
    # Nothing was lost: a later reload still brings all of them over.
    tool.ok("reload", PORT, "--", *server_command("good"))
    assert clients.answers() == {"good": QUEUED}


def snapshot_without_queues(taken):  # type: ignore[no-untyped-def]
    """The tool's own probe may wait in a queue."""
    status, pins = taken
    for group in status["groups"]:
        for listener in group["listeners"]:
            listener.pop("accept_queue")
    return status, pins


def test_a_new_side_that_listens_elsewhere_is_named(tool: Tool, server: Start) -> None:
    server("old")
    arguments = ("reload", PORT, "--start-timeout", 5, "--", *server_command("new", port=9090))
    error = tool.fails(8, *arguments)
    assert "127.0.0.1:9090" in error["message"]
    assert ask() == "old"


def test_a_difference_goes_through_by_force(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf")
    clients.connect(5)
    report = tool.ok("reload", PORT, "--force", "--", *server_command("new", "--save-syn"))
    assert any("save_syn" in warning for warning in report["warnings"])
    assert clients.answers() == {"new": 5}


def test_a_roll_back_is_reported(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf")
    clients.connect(3)
    done = tool.run("reload", PORT, "--no-probe", "--health-command", "false", "--", *server_command("new"))
    assert done.code == 8
    report = done.json
    assert report["result"] == "rolled-back"
    assert [step["name"] for step in report["steps"]][-1] == "roll back"
    assert report["migrated"]["total"] == 0
    assert clients.sockets


def test_what_the_new_side_had_queued_goes_back(tool: Tool, server: Start, clients: Clients, tmp_path: Path) -> None:
    """The new side is deaf: connections that reached it before the roll-back are answered by the old."""
    server("old")
    asked, connected = tmp_path / "asked", tmp_path / "connected"
    health = ("--health-command", f"touch {asked}; {until(connected)}; false", "--health-timeout", 60)
    process = subprocess.Popen(
        tool.command("reload", PORT, "--no-probe", *health, "--", *server_command("new", "--deaf"))
    )
    # Before that the reload waits for the new queues to be empty, which those of a deaf server would never be again.
    assert wait_until(asked.exists, 30)
    assert tool.ok("status", PORT)["groups"][0]["working_generation"] == 2
    clients.connect(10)
    connected.touch()
    assert process.wait(timeout=60) == 8
    assert clients.answers() == {"old": 10}


def test_an_old_side_that_does_not_stop_is_reported(tool: Tool, server: Start) -> None:
    server("old", "--ignore-term")
    error = tool.fails(1, "reload", PORT, "--stop-timeout", 0.5, "--", *server_command("new"))
    assert "still listens" in error["message"]
    assert ask() == "new"


def test_stop_signal_and_stop_command(tool: Tool, server: Start) -> None:
    old = server("old", "--ignore-term")
    tool.ok("reload", PORT, "--stop-signal", "KILL", "--", *server_command("second"))
    assert old.wait() == -signal.SIGKILL
    pid = tool.ok("status", PORT)["groups"][0]["listeners"][0]["pid"]
    tool.ok("reload", PORT, "--stop-command", f"kill {pid}", "--", *server_command("third"))
    assert ask() == "third"


def test_old_pid_leaves_the_others_alone(tool: Tool, server: Start) -> None:
    first, second = server("first"), server("second")
    tool.ok("reload", PORT, "--old-pid", first.pid, "--", *server_command("third"))
    first.wait(timeout=30)
    assert second.poll() is None


STEPS = ["prepare", "start", "compare", "register", "canary", "switch", "health", "drain"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_stop_is_undone(
    tool: Tool, server: Start, clients: Clients, step: str, number: signal.Signals
) -> None:
    server("old", "--deaf")
    clients.connect(5)
    before = snapshot(tool)
    with pytest.raises(Interrupted):
        reload_interrupted_in(step, tool, number)
    assert snapshot_without_queues(snapshot(tool)) == snapshot_without_queues(before)
    tool.ok("reload", PORT, "--", *server_command("good"))
    assert clients.answers() == {"good": 5}


@pytest.mark.parametrize("step", ["stop", "prove"])
def test_an_interrupt_after_the_stop_waits_for_the_end(tool: Tool, server: Start, clients: Clients, step: str) -> None:
    server("old", "--deaf")
    clients.connect(5)
    reload_interrupted_in(step, tool, signal.SIGINT)
    assert clients.answers() == {"new": 5}


def reload_interrupted_in(step: str, tool: Tool, number: signal.Signals) -> None:
    """Reload in this process, with a signal at the beginning of a step."""

    def begin(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), number)

    def ignore(_: str | Step) -> None:
        pass

    plan = Plan(command=tuple(server_command("new")), probe=False)
    reload.reload(
        [parse_endpoint(str(PORT))], plan, tool.bpffs, Progress(begin=begin, end=ignore, note=ignore, warn=ignore)
    )


def test_plans_that_make_no_sense(tool: Tool, server: Start) -> None:
    server("old")
    tool.fails(2, "reload", PORT)
    tool.fails(2, "reload", PORT, "--new-pid", 1, "--run", "true")
    tool.fails(2, "reload", PORT, "--", "/no/such/program")
    tool.fails(6, "reload", PORT, "--new-pid", 2**22)
    tool.fails(6, "reload", PORT + 1, "--run", "true")
    tool.fails(8, "reload", PORT, "--run", "exit 4")
    assert ask() == "old"


def test_a_second_reload_finds_the_lock_taken(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    healthy = tmp_path / "healthy"
    first = begin_reload(tool, healthy)
    assert wait_until(lambda: tool.ok("status", PORT)["groups"][0]["working_generation"] == 2, 30)
    error = tool.fails(7, "reload", PORT, "--", *server_command("second"))
    assert f"process {first.pid}" in error["message"]
    healthy.touch()
    assert first.wait(timeout=60) == 0
