"""The tool is killed in the middle of what it does: the group works on, and another run finishes or undoes it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from reuseport_tool.group import attach, detach
from reuseport_tool.group import slots as maps
from reuseport_tool.models import Policy, Step, parse_endpoint
from reuseport_tool.reload import run
from reuseport_tool.reload import transaction as reload
from reuseport_tool.reload.plan import Plan
from reuseport_tool.reload.state import NO_WAY_BACK
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT, Clients, ask, begin_reload, server_command, snapshot
from tests.kernel.reload import killed
from tests.tool import Tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
Start = Callable[..., subprocess.Popen[str]]
QUEUED = 20
STEPS = [step for step in run.STEPS if step not in NO_WAY_BACK]


def kill_reload(bpffs: Path | None, step: str, at_end: bool = False, **options: object) -> None:
    """Reload in a fork that kills itself when a step begins, or has ended: by then the one before is over.

    Args:
        step: or a share of the canary, which the new generation has by then.
    """

    def die(name: str) -> None:
        if name == step or name.startswith(f"{step} of"):
            os.kill(os.getpid(), signal.SIGKILL)

    def end(done: Step) -> None:
        die(done.name)

    progress = killed.quiet(end=end) if at_end else killed.quiet(begin=die, note=die)
    how = {"command": tuple(server_command("new")), "probe": False, "output": Path("/dev/null"), **options}
    plan = Plan(**how)  # type: ignore[arg-type]
    pid = killed.in_fork(lambda: reload.reload([parse_endpoint(str(PORT))], plan, bpffs, progress))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("step", [*STEPS, *NO_WAY_BACK, "end"])
def test_resumed_after_any_step(tool: Tool, server: Start, clients: Clients, step: str) -> None:
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    kill_reload(tool.bpffs, step if step != "end" else "prove", at_end=step == "end")
    report = tool.ok("reload", PORT, "--resume")
    assert report["result"] == "reloaded"
    assert report["migrated"]["established"] == report["migrated"]["total"] == QUEUED
    assert clients.answers() == {"new": QUEUED}
    old.wait(timeout=30)
    status, pins = snapshot(tool)
    (group,) = status["groups"]
    assert [listener["flag"] for listener in group["listeners"]] == ["working"]
    assert not [pin for pin in pins if "journal" in pin or "next" in pin or "generation_1" in pin]


@pytest.mark.parametrize("attached", [False, True], ids=["fresh", "attached"])
@pytest.mark.parametrize("step", STEPS)
def test_aborted_after_any_step(tool: Tool, server: Start, clients: Clients, step: str, attached: bool) -> None:
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    if attached:
        tool.ok("attach", PORT)
    before = snapshot(tool)
    kill_reload(tool.bpffs, step)
    assert tool.ok("reload", PORT, "--abort")["result"] == "rolled-back"
    assert snapshot(tool) == before
    assert old.poll() is None
    tool.ok("reload", PORT, "--", *server_command("good"))
    assert clients.answers() == {"good": QUEUED}


@pytest.mark.parametrize("step", ["start", "compare", "stop", "health"])
def test_a_replacement_by_the_server_itself(tool: Tool, server: Start, clients: Clients, step: str) -> None:
    """With --run the tool holds the old listeners, and a killed one lets them go: to the new ones if there are any."""
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    run = f"{' '.join(server_command('new'))} & sleep 0.3; kill {old.pid}; wait"
    kill_reload(tool.bpffs, step, command=None, run=run)
    report = tool.ok("reload", PORT, "--resume")
    assert report["result"] == "reloaded"
    assert clients.answers() == {"new": QUEUED}
    old.wait(timeout=30)
    assert [entry["flag"] for entry in tool.ok("status", PORT)["groups"][0]["listeners"]] == ["working"]


@pytest.mark.parametrize("step", NO_WAY_BACK)
def test_not_aborted_once_the_old_side_was_told_to_stop(tool: Tool, server: Start, step: str) -> None:
    server("old")
    kill_reload(tool.bpffs, step, at_end=True)
    error = tool.fails(7, "reload", PORT, "--abort")
    assert "--resume" in error["hint"]
    tool.ok("reload", PORT, "--resume")
    assert ask() == "new"


def test_not_aborted_when_the_old_side_is_gone(tool: Tool, server: Start) -> None:
    old = server("old")
    kill_reload(tool.bpffs, "switch", at_end=True)
    old.kill()
    old.wait()
    assert "gone" in tool.fails(7, "reload", PORT, "--abort")["message"]
    tool.ok("reload", PORT, "--resume")
    assert ask() == "new"


def test_killed_while_it_rolls_back(tool: Tool, server: Start) -> None:
    server("old")
    before = snapshot(tool)
    kill_reload(tool.bpffs, "roll back", health_command="false")
    kill_reload_step = tool.ok("status", PORT)["groups"][0]["reload"]["step"]
    assert kill_reload_step in ("health", "roll back")
    tool.ok("reload", PORT, "--abort")
    assert snapshot(tool) == before


def test_resumed_canary_goes_on_at_its_share(tool: Tool, server: Start) -> None:
    server("old")
    kill_reload(tool.bpffs, "40 %", canary=(5.0, 40.0), step_s=0.2)
    assert tool.ok("status", PORT)["groups"][0]["canary"]["percent"] == 40, "the group works on as it is"
    report = tool.ok("reload", PORT, "--resume")
    assert [step["percent"] for step in report["canary"]] == [5, 40]
    assert ask() == "new"


def test_what_was_interrupted_is_shown_and_left_alone(tool: Tool, server: Start) -> None:
    server("old")
    kill_reload(tool.bpffs, "switch", at_end=True)
    interrupted = tool.ok("status", PORT)["groups"][0]["reload"]
    assert (interrupted["running"], interrupted["step"]) == (False, "switch")
    assert "--resume" in tool.run("status", as_json=False).out
    for verb in (("reload", PORT, "--", "true"), ("attach", PORT), ("map", "switch", PORT, 1)):
        assert "--resume" in tool.fails(7, *verb)["hint"]
    assert tool.ok("detach", PORT)["detached"][0]["result"] == "detached"
    tool.fails(6, "reload", PORT, "--resume")
    tool.fails(6, "reload", PORT, "--abort")


def test_a_running_reload_is_shown_and_cannot_be_taken_over(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    healthy = tmp_path / "healthy"
    process = begin_reload(tool, healthy)

    def step() -> str | None:
        running = tool.ok("status", PORT)["groups"][0]["reload"]
        assert running is None or (running["running"], running["pid"]) == (True, process.pid)
        return running and running["step"]

    assert wait_until(lambda: step() == "health", 30)
    for how in ("--resume", "--abort"):
        assert f"process {process.pid}" in tool.fails(7, "reload", PORT, how)["message"]
    words = tool.command("reload", PORT, "--wait", "60s", "--", *server_command("second"))
    second, third = (subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2))
    for waiting in (second, third):
        assert wait_until(lambda waiting=waiting: "poll" in Path(f"/proc/{waiting.pid}/wchan").read_text(), 30)
    third.send_signal(signal.SIGINT)
    assert third.wait(timeout=30) == 130
    assert process.poll() is None
    healthy.touch()
    assert process.wait(timeout=60) == second.wait(timeout=60) == 0
    assert ask() == "second"


@pytest.mark.parametrize("how", ["resume", "abort"])
@pytest.mark.parametrize("step", ["prepare", "start", "stop"])
def test_the_sysctl_is_restored(tool: Tool, server: Start, clients: Clients, step: str, how: str) -> None:
    from reuseport_tool.models import Strategy

    server("old", "--deaf")
    clients.connect(QUEUED)
    kill_reload(tool.bpffs, step, at_end=True, strategy=Strategy.SYSCTL)
    assert tool.ok("migrate-req")["enabled"] is True
    if step != "stop" and how == "abort":
        tool.ok("reload", PORT, "--abort")
    else:
        tool.ok("reload", PORT, "--resume")
    assert tool.ok("migrate-req")["enabled"] is False
    tool.ok("reload", PORT, "--", *server_command("good"))
    assert set(clients.answers()) <= {"new", "good"}


def test_killed_at_random_moments_under_load() -> None:
    """A short run of `python -m tests.kernel.reload.killed`."""
    summary, well = killed.torture(kills=8, seed=random.SystemRandom().randrange(2**32))
    assert well, summary


VERBS: dict[str, Callable[[Path], object]] = {
    "attach": lambda bpffs: attach.attach(parse_endpoint(str(PORT)), Policy.ROUND_ROBIN, None, bpffs),
    "detach": lambda bpffs: detach.detach(parse_endpoint(str(PORT)), bpffs),
    "switch": lambda bpffs: maps.switch(parse_endpoint(str(PORT)), bpffs, generation=1, force=False),
}


@pytest.mark.parametrize("verb", VERBS)
def test_other_verbs_killed_at_random_moments(tool: Tool, server: Start, verb: str) -> None:
    """Whatever is left, the group answers, and attach and detach bring it to what they promise."""
    server("old", "--listeners", 4)
    assert tool.bpffs is not None
    for _ in range(8):
        tool.ok("attach", PORT, "--policy", "hash")
        killed.killed_after(lambda: VERBS[verb](tool.bpffs), random.uniform(0, 0.4))  # type: ignore[arg-type]
        assert ask() == "old"
        tool.ok("attach", PORT)
        group = tool.ok("status", PORT)["groups"][0]
        assert [listener["flag"] for listener in group["listeners"]] == ["working"] * 4
        assert not group["stale"]
        tool.ok("detach", PORT)
        assert snapshot(tool)[1] == []
