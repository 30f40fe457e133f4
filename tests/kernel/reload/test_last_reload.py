"""What became of the last reload, as `status` tells it afterwards: also of one that failed or was undone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.group import places
from reuseport_tool.models import parse_endpoint
from tests.kernel.conftest import PORT, Clients, server_command
from tests.tool import Tool

pytestmark = [
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
QUEUED = 20
Start = Callable[..., subprocess.Popen[str]]


def last(tool: Tool) -> dict[str, Any]:
    found: dict[str, Any] = tool.ok("status", PORT)["groups"][0]["last_reload"]
    return found


def record(tool: Tool) -> Path:
    assert tool.bpffs is not None
    return Path(str(places.group_folder(tool.bpffs, parse_endpoint(f"127.0.0.1:{PORT}")) / places.LAST_RELOAD))


def test_one_that_went_well(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf")
    clients.connect(QUEUED)
    begun_at = time.time()
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    found = last(tool)
    assert begun_at < found.pop("ended_at") < time.time()
    assert found == {
        "result": "reloaded",
        "duration_s": report["duration_s"],
        "moved": QUEUED,
        "lost": report["resets"]["never_accepted"] if report["resets"] else None,
        "failure": None,
    }
    told = tool.run("status", PORT, as_json=False).out
    assert f"last reload: reloaded at {time.strftime('%F')}" in told
    assert f"{QUEUED} moved" in told


@pytest.mark.parametrize("attached", [True, False])
def test_one_that_was_rolled_back(tool: Tool, server: Start, attached: bool) -> None:
    server("old")
    if attached:
        tool.ok("attach", PORT)
    error = tool.fails(8, "reload", PORT, "--health-command", "false", "--", *server_command("new"))
    found = last(tool)
    assert (found["result"], found["failure"]) == ("rolled-back", error["message"])
    tool.ok("reload", PORT, "--", *server_command("good"))
    assert last(tool)["result"] == "reloaded"


def test_one_that_failed_after_the_stop(tool: Tool, server: Start) -> None:
    server("old")
    assert tool.run("reload", PORT, "--on-stop", "false", "--", *server_command("new")).code == 1
    found = last(tool)
    assert found["result"] == "failed"
    assert "the hook after stop" in found["failure"]


def test_one_that_was_refused_leaves_the_record_alone(tool: Tool, server: Start) -> None:
    server("old")
    tool.ok("reload", PORT, "--", *server_command("new"))
    before = last(tool)
    tool.fails(2, "reload", PORT, "--", "/no/such/program")
    assert last(tool) == before


@pytest.mark.parametrize("result", [0, 8])
def test_detach_removes_the_record_also_alone(tool: Tool, server: Start, result: int) -> None:
    server("old")
    health = ("--health-command", "false") if result else ()
    assert tool.run("reload", PORT, *health, "--", *server_command("new")).code == result
    assert record(tool).exists()
    tool.ok("detach", "--all")
    assert not record(tool).parent.exists()
    assert last(tool) is None


def test_a_group_that_nobody_serves_any_more_shows_it(tool: Tool, server: Start) -> None:
    """The program goes with its last listener's group; the record stays until it is removed."""
    old = server("old")
    tool.fails(8, "reload", PORT, "--health-command", "false", "--", *server_command("new"))
    old.kill()
    old.wait(20)
    (group,) = tool.ok("status")["groups"]
    assert (group["endpoint"], group["listeners"]) == (f"tcp://127.0.0.1:{PORT}", [])
    assert group["last_reload"]["result"] == "rolled-back"
    told = tool.run("status", PORT, as_json=False).out
    assert "nobody listens here" in told
    tool.ok("detach", PORT)
    assert tool.ok("status")["groups"] == []
    tool.fails(6, "status", PORT)


def test_what_is_no_record_is_damage_and_repair_removes_it(tool: Tool, server: Start) -> None:
    server("old")
    tool.ok("reload", PORT, "--", *server_command("new"))
    record(tool).unlink()
    assert last(tool) is None
    assert not tool.ok("status", PORT)["groups"][0]["problems"]
    record(tool).mkdir()
    (problem,) = tool.run("status", PORT, "--check").json["groups"][0]["problems"]
    assert problem["kind"] == "damaged"
    assert "--repair" in problem["detail"]
    assert tool.ok("attach", PORT, "--repair")["attached"][0]["result"] == "repaired"
    assert not record(tool).exists()
    assert not tool.ok("status", PORT)["groups"][0]["problems"]


def test_a_reload_replaces_what_is_no_record(tool: Tool, server: Start) -> None:
    server("old")
    tool.ok("reload", PORT, "--", *server_command("new"))
    (record(tool).parent / "state" / "program").rename(record(tool))  # a program, and the pins are damaged as well
    tool.ok("attach", PORT, "--repair")
    tool.ok("reload", PORT, "--", *server_command("newer"))
    assert last(tool)["result"] == "reloaded"
