"""The reload on any kernel, also one that cannot migrate, or that wakes nobody when it does.

The servers sleep in epoll_wait. Whatever strategy the tool chooses, no client is lost.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable

import pytest

from reuseport_tool.probes import features
from tests.kernel.conftest import PORT, Clients, ask, server_command, snapshot
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("end_owners")
QUEUED = 50
MOST = 500
INTERVAL_S = 0.02
Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.vm
def test_the_default_strategy_loses_none(tool: Tool, server: Start, clients: Clients) -> None:
    server("old")
    clients.connect(QUEUED)
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    safe = "migrate" if features.migration_works() and features.migration_wakes() else "drain"
    assert report["strategy"] == safe
    assert sum(clients.answers().values()) == QUEUED
    assert ask() == "new"


@pytest.mark.vm
def test_what_was_queued_during_the_reload_is_answered(tool: Tool, server: Start, clients: Clients) -> None:
    """Connections that arrive all the while: none is reset, each is answered by one side or the other."""
    server("old")
    command = tool.command("reload", PORT, "--", *server_command("new"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for _ in range(MOST):
        clients.connect(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=INTERVAL_S)
            break
    assert process.wait(timeout=60) == 0
    answers = clients.answers()
    assert set(answers) <= {"old", "new"}
    assert answers["old"] > 1
    assert ask() == "new"


@pytest.mark.vm
def test_drain_waits_for_the_old_side(tool: Tool, server: Start, clients: Clients) -> None:
    server("old")
    clients.connect(QUEUED)
    report = tool.ok("reload", PORT, "--strategy", "drain", "--", *server_command("new"))
    assert clients.answers() == {"old": QUEUED}
    assert report["migrated"]["total"] == 0
    assert ask() == "new"


def test_drain_that_never_ends_rolls_back(tool: Tool, server: Start, clients: Clients) -> None:
    server("old", "--deaf")
    clients.connect(3)
    before = snapshot(tool)
    arguments = ("--strategy", "drain", "--drain-timeout", 0.5, "--", *server_command("new"))
    error = tool.fails(8, "reload", PORT, *arguments)
    assert "3 queued" in error["message"]
    assert snapshot(tool) == before


def test_a_failed_health_command_rolls_back(tool: Tool, server: Start, clients: Clients) -> None:
    server("old")
    before = snapshot(tool)
    error = tool.fails(8, "reload", PORT, "--health-command", "exit 5", "--", *server_command("new"))
    assert "exited with 5" in error["message"]
    assert snapshot(tool) == before
    assert ask() == "old"


@pytest.mark.vm
def test_a_strategy_that_this_kernel_lacks_is_refused(tool: Tool, server: Start) -> None:
    server("old")
    if features.migration_works():
        tool.ok("reload", PORT, "--strategy", "migrate", "--", *server_command("new"))
    else:
        tool.fails(4, "reload", PORT, "--strategy", "migrate", "--", *server_command("new"))
        assert ask() == "old"
