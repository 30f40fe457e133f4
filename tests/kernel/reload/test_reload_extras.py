"""Hooks of the operator, and the files that are drawn from a report, with small servers."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import PORT, Clients, ask, server_command, snapshot
from tests.tool import Tool

pytestmark = [
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
QUEUED = 20
Start = Callable[..., subprocess.Popen[str]]


def test_hooks_run_after_their_steps(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    log = tmp_path / "log"
    hooks = [word for step in ("stop", "start", "switch") for word in (f"--on-{step}", f"echo {step} >>{log}")]
    tool.ok("reload", PORT, *hooks, "--", *server_command("new"))
    assert log.read_text().split() == ["start", "switch", "stop"]


@pytest.mark.parametrize("hook", ["false", "sleep 60"])
def test_a_hook_that_fails_before_the_stop_rolls_back(
    tool: Tool, server: Start, clients: Clients, hook: str, tmp_path: Path
) -> None:
    server("old", "--deaf")
    clients.connect(QUEUED)
    before = snapshot(tool)
    error = tool.fails(8, "reload", PORT, "--on-switch", hook, "--hook-timeout", "1s", "--", *server_command("new"))
    assert "the hook after switch" in error["message"]
    assert snapshot(tool) == before


def test_a_hook_that_fails_after_the_stop_is_told(tool: Tool, server: Start) -> None:
    old = server("old")
    done = tool.run("reload", PORT, "--on-stop", "false", "--", *server_command("new"))
    assert done.code == 1
    assert done.json["result"] == "reloaded"
    assert old.wait(10) is not None


def test_state_that_somebody_removes_meanwhile(tool: Tool, server: Start) -> None:
    """As an unmounted bpffs does it."""
    server("old")
    hook = ("--on-register", f"rm -r {tool.bpffs}/* || true")
    error = tool.fails(8, "reload", PORT, *hook, "--", *server_command("new"))
    assert "a folder with the state of the group is gone; rolled back" in error["message"]
    assert str(tool.bpffs) in error["hint"]
    assert ask() == "old"


def test_a_worker_is_not_taken_for_the_new_server(
    tool: Tool, server: Start, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """The other workers, and the master, which would be stopped, are as new."""
    server("old")
    new = spawn(*(sys.executable, "-m", "tests.servers.prefork", "127.0.0.1", PORT, 2), stdout=subprocess.PIPE)
    assert new.stdout is not None
    workers = [new.stdout.readline().split()[0] for _ in range(2)]
    before = snapshot(tool)
    error = tool.fails(7, "reload", PORT, "--new-pid", workers[1])
    assert str(new.pid) in error["hint"]
    assert snapshot(tool) == before
    assert len(tool.ok("reload", PORT, "--new-pid", new.pid)["new"]["listeners"]) == 2


def test_the_picture_and_the_trace(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    picture, trace = tmp_path / "reload.svg", tmp_path / "reload.json"
    files = ("--timeline", picture, "--trace", trace)
    report = tool.ok("reload", PORT, *files, "--canary", "50,100", "--step", "200ms", "--", *server_command("new"))
    done = [step["name"] for step in report["steps"] if step["outcome"] == "done"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "X"] == done
    titles = [
        element.text or "" for element in ET.fromstring(picture.read_text()).iter() if element.tag.endswith("title")
    ]
    assert [title.partition(":")[0] for title in titles] == done


def test_a_roll_back_is_drawn_too(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    picture = tmp_path / "reload.svg"
    tool.fails(8, "reload", PORT, "--timeline", picture, "--health-command", "false", "--", *server_command("new"))
    assert "rolled-back" in picture.read_text()


def test_a_file_that_cannot_be_written_changes_nothing(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    done = tool.run("reload", PORT, "--timeline", tmp_path / "no" / "folder.svg", "--", *server_command("new"))
    assert done.code == 0
    assert "was not written" in done.err
