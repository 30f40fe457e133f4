"""The tool is killed in each step of a UDP reload under load, and another run finishes or undoes it.

1. A server answers each datagram after a while, and clients send at a steady rate.
2. A reload is killed by SIGKILL when a step begins: the servers are left as they are, and work on.
3. `--resume` or `--abort` ends it. Every datagram is answered, and nothing is left. With `address` the server answers
   only clients that it knows: theirs stay with it until they end. With `quic` it knows connections, and the
   addresses of the clients change after the switch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.check.quic_load import QuicClient, QuicLoad
from reuseport_tool.check.udp_load import CLIENTS, Background, UdpLoad
from reuseport_tool.models import FlowMode, parse_endpoint
from reuseport_tool.reload import run, transaction
from reuseport_tool.reload.plan import Hook, Plan
from reuseport_tool.reload.state import NO_WAY_BACK
from tests.kernel.reload import killed
from tests.kernel.udp.test_reload_udp import end_new_servers  # noqa: F401
from tests.tool import Tool

PORT = 5500
ENDPOINT = f"udp://127.0.0.1:{PORT}"
BEFORE = [step for step in run.STEPS if step not in NO_WAY_BACK]
WAYS = ["none", "address"]
RESUMED = [(step, way) for step in [*BEFORE, *NO_WAY_BACK, "end"] for way in WAYS]
ABORTED = [(step, way) for step in BEFORE for way in WAYS]

pytestmark = [pytest.mark.needs("TCP iterator", "detach from a group")]


Start = Callable[[str], subprocess.Popen[str]]


def command(name: str, way: str) -> tuple[str, ...]:
    """Each answer comes late, so that a server that is stopped at once loses some; with `quic` it knows connections."""
    if way == "quic":
        return (sys.executable, "-m", "reuseport_tool.check.quic_server", "127.0.0.1", str(PORT))
    options = ("127.0.0.1", str(PORT), name, "--delay", "0.1", *(("--session",) if way == "address" else ()))
    return (sys.executable, "-m", "reuseport_tool.check.udp_server", *options)


def clients(way: str) -> UdpLoad | QuicLoad:
    return QuicLoad("127.0.0.1", PORT, renewed=False) if way == "quic" else UdpLoad("127.0.0.1", PORT)


@pytest.fixture
def started(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> Start:
    """Start the old server of a way."""

    def start(way: str) -> subprocess.Popen[str]:
        process = spawn(*command("old", way), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def kill_reload(bpffs: Path | None, step: str, way: str, **options: object) -> None:
    """Reload in a fork that kills itself when a step begins, or at the end, or when it says this word."""

    def die(name: str) -> None:
        if step in name.split():
            os.kill(os.getpid(), signal.SIGKILL)

    progress = killed.quiet(begin=die, note=die, end=lambda done: die("end" if done.name == "prove" else ""))
    how = {"flows": FlowMode(way), "settle_s": 0.3, "output": Path("/dev/null"), **options}
    plan = Plan(**{"command": command("new", way), **how})  # type: ignore[arg-type]
    pid = killed.in_fork(lambda: transaction.reload([parse_endpoint(ENDPOINT)], plan, bpffs, progress))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def group(tool: Tool) -> Any:
    (found,) = tool.ok("status", ENDPOINT)["groups"]
    return found


def picture(tool: Tool) -> tuple[object, ...]:
    """What an undone reload leaves as it was. Counters and flows go on, and the outcome of the last reload is kept."""
    assert tool.bpffs is not None
    found = group(tool)
    listeners = [(entry["cookie"], entry["flag"], entry["slot"]) for entry in found["listeners"]]
    files = [path for path in tool.bpffs.rglob("*") if path.is_file() and path.suffix != ".debug"]
    pins = sorted(str(path.relative_to(tool.bpffs)) for path in files if path.name != "last_reload")
    return found["working_generation"], bool(found["program"]), found["reload"], listeners, pins


@pytest.mark.parametrize(("step", "way"), [*RESUMED, ("switch", "quic"), ("drain", "quic")])
def test_resumed_after_any_step(tool: Tool, started: Start, tmp_path: Path, step: str, way: str) -> None:
    old, switched = started(way), tmp_path / "switched"
    tool.ok("attach", ENDPOINT, "--flows", way)
    ending = (Hook(step="switch", command=f"touch {switched}"),) if way != "none" else ()
    with clients(way) as load:
        load.end_after(switched)
        kill_reload(tool.bpffs, step, way, flow_timeout_s=1.0, hooks=ending)
        load.go_on(CLIENTS * 2)
        report = tool.ok("reload", ENDPOINT, "--resume")
        load.go_on(CLIENTS * 2)
    [handed_over] = report["datagrams"]
    is_watched = way == "none" or step not in (
        "health",
        "confirm",
        "drain",
    )  # from the kill to the next run nobody looks
    evicted = 0 if is_watched else None
    assert (report["result"], handed_over["cut"], handed_over["evicted"]) == ("reloaded", 0, evicted)
    assert load.lost == 0
    old.wait(timeout=30)
    found = group(tool)
    assert [entry["flag"] for entry in found["listeners"]] == ["working"] * 2
    assert found["reload"] is None
    assert not [pin for pin in picture(tool)[-1] if "journal" in pin or "next" in pin or "generation_1" in pin]


@pytest.mark.parametrize(("step", "way"), [*ABORTED, ("drain", "quic")])
def test_aborted_after_any_step(tool: Tool, started: Start, tmp_path: Path, step: str, way: str) -> None:
    old, switched = started(way), tmp_path / "switched"
    if way != "none":
        tool.ok("attach", ENDPOINT, "--flows", way)
    before = picture(tool)
    with clients(way) as load:
        if way == "quic":
            load.end_after(switched)
        hook = Hook(step="switch", command=f"touch {switched}")
        kill_reload(tool.bpffs, step, way, hooks=(hook,), **({"drain_timeout_s": 1.5} if way != "none" else {}))
        load.go_on(CLIENTS * 2)
        assert tool.ok("reload", ENDPOINT, "--abort")["result"] == "rolled-back"
        load.go_on(CLIENTS * 2)
    assert load.lost == 0
    assert picture(tool) == before
    assert old.poll() is None


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("way", ["address", "quic"])
def test_flows_that_nobody_recorded_before(tool: Tool, started: Start, tmp_path: Path, way: str, dies: bool) -> None:
    """The reload records them first. If it dies while it does, another run does not take for recorded what is not.

    With `quic` other clients begin connections meanwhile: these show how long the IDs are.
    """
    started(way)
    switched = tmp_path / "switched"

    def begin_others(stop: threading.Event) -> None:
        while way == "quic" and not switched.exists() and not stop.wait(0.1):
            QuicClient("127.0.0.1", PORT).close()

    with clients(way) as load, Background(begin_others):
        load.end_after(switched)
        if dies:
            ending = (Hook(step="switch", command=f"touch {switched}"),)
            kill_reload(tool.bpffs, "recording", way, flow_timeout_s=1.0, hooks=ending)
            done = tool.run("reload", ENDPOINT, "--resume")
        else:
            options = ("--flows", way, "--flow-timeout", "1s", "--output", "/dev/null")
            hook = ("--on-switch", f"touch {switched}")
            done = tool.run("reload", ENDPOINT, *options, *hook, "--", *command("new", way))
    assert (done.code, load.lost) == (0, 0), done.err
    assert "recording flows" in done.err
    [handed_over] = done.json["datagrams"]
    assert (handed_over["cut"], handed_over["evicted"]) == (0, 0)


@pytest.mark.parametrize("step", NO_WAY_BACK)
def test_not_aborted_once_the_old_side_was_told_to_stop(tool: Tool, started: Start, step: str) -> None:
    started("none")
    kill_reload(tool.bpffs, step, "none")
    assert "--resume" in tool.fails(7, "reload", ENDPOINT, "--abort")["hint"]
    tool.ok("reload", ENDPOINT, "--resume")


def test_a_kill_of_the_server_loses(started: Start) -> None:
    """The arm without the tool: the same load, a new server beside the old one, and SIGKILL."""
    old = started("none")
    with UdpLoad("127.0.0.1", PORT) as load:
        started("none")
        load.go_on(CLIENTS * 5)
        old.kill()
        old.wait()
    assert load.lost > 0


def test_a_roll_back_after_the_switch_lets_the_new_server_answer(tool: Tool, started: Start) -> None:
    old = started("none")
    options = ("--flows", "none", "--settle", "0.6s", "--health-command", "sleep 0.3; false", "--output", "/dev/null")
    with UdpLoad("127.0.0.1", PORT) as load:
        load.go_on(CLIENTS)
        done = tool.run("reload", ENDPOINT, *options, "--", *command("new", "none"))
        load.go_on(CLIENTS)
    assert (done.code, done.json["result"]) == (8, "rolled-back"), done.err
    assert load.lost == 0
    assert old.poll() is None


@pytest.mark.parametrize("how", ["--abort", "--resume"])
def test_killed_while_datagrams_wait_for_the_gap(tool: Tool, started: Start, how: str) -> None:
    """What waits in the tool's socket goes with it. From then on the old server gets everything again."""
    old = started("none")
    before = picture(tool)
    new = " ".join(command("new", "none"))
    gone = f'until [ -z "$(ls /proc/{old.pid}/fd 2>/dev/null)" ]; do sleep 0.01; done'
    kill_reload(tool.bpffs, "start", "none", command=None, run=f"kill {old.pid}; {gone}; {new} >/dev/null 2>&1 &")
    with UdpLoad("127.0.0.1", PORT) as load:
        load.go_on(CLIENTS * 2)
        result = tool.ok("reload", ENDPOINT, how)["result"]
        load.go_on(CLIENTS * 2)
    assert (result, load.lost) == ({"--abort": "rolled-back", "--resume": "reloaded"}[how], 0)
    if how == "--abort":
        assert picture(tool) == before
        assert old.poll() is None
    else:
        assert [entry["flag"] for entry in group(tool)["listeners"]] == ["working"] * 2
        assert not [pin for pin in picture(tool)[-1] if "journal" in pin or "generation_1" in pin]
