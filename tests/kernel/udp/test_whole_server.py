"""A server with a TCP and a UDP group is handed over as a whole: both halves, or neither.

1. A server answers connections and datagrams on one port, each with its name, and clients ask it on both.
2. A reload ends well, fails in one half, or is killed after the TCP half was switched and before the UDP half was.
3. Nothing is lost on either side, and one server alone serves both halves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from reuseport_tool.check.udp_load import Background
from reuseport_tool.models import FlowMode, parse_endpoint
from reuseport_tool.reload import transaction
from reuseport_tool.reload.plan import Plan
from reuseport_tool.reload.ways.datagrams import DatagramWay
from tests.kernel.reload import killed
from tests.kernel.udp.test_reload_udp import (  # noqa: F401
    PORT,
    SERVER,
    Load,
    Start,
    end_new_servers,
    endpoint,
    reload,
    server,
)
from tests.tool import Tool

TCP = f"tcp://127.0.0.1:{PORT}"
OPTIONS = (TCP, "--flows", "none", "--settle", "0.3s")
BOTH = ("--tcp", "--delay", 0.1)

pytestmark = [pytest.mark.needs("TCP iterator", "detach from a group")]


class Connections(Background):
    """One connection after the other. `served` are those that answered, in order; `failed` got no answer."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.failed = 0
        super().__init__(self._ask_all)

    def _ask_all(self, stop: threading.Event) -> None:
        while not stop.is_set():
            answer = b""
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=20) as client:
                answer = client.recv(16)
            self.failed += not answer
            self.served.append(answer.decode())
            stop.wait(0.002)


def kill_between(bpffs: Path | None) -> None:
    """Reload in a fork that kills itself when the UDP half is to be switched."""

    def run() -> None:
        DatagramWay.switch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
        command = (*SERVER, "new", *map(str, BOTH))
        plan = Plan(command=command, flows=FlowMode.NONE, settle_s=0.3, output=Path("/dev/null"))
        transaction.reload([parse_endpoint(TCP)], plan, bpffs, killed.quiet())

    assert os.WTERMSIG(os.waitpid(killed.in_fork(run), 0)[1]) == signal.SIGKILL


def serving() -> set[str]:
    """Who serves both halves now."""
    with Load() as load, Connections() as connections:
        while len(connections.served) < 20:
            threading.Event().wait(0.01)
    return {*load.last.values(), *connections.served[1:]}


@pytest.mark.parametrize("how", ["--resume", "--abort"])
def test_killed_between_the_switches(tool: Tool, server: Start, how: str) -> None:  # noqa: F811
    server("old", *BOTH)
    with Load() as load, Connections() as connections:
        kill_between(tool.bpffs)
        [tcp] = tool.ok("status", TCP)["groups"]
        [udp] = tool.ok("status", endpoint())["groups"]
        assert (tcp["working_generation"], udp["working_generation"]) == (2, 1)
        report = tool.ok("reload", TCP, how)
    assert report["result"] == ("reloaded" if how == "--resume" else "rolled-back")
    assert (load.unanswered, connections.failed) == ({}, 0)
    assert serving() == {"new" if how == "--resume" else "old"}


def test_a_half_that_is_not_ready_keeps_the_other_from_being_switched(tool: Tool, server: Start) -> None:  # noqa: F811
    server("old", *BOTH)
    with Load() as load, Connections() as connections:
        code, report, err = reload(tool, *OPTIONS, "--health-timeout", "1s", new=(*BOTH, "--deaf"))
    assert (code, report["result"]) == (8, "rolled-back"), err
    assert (load.unanswered, connections.failed) == ({}, 0)
    assert {*load.answers, *connections.served} == {"old"}


def test_a_check_that_fails_rolls_both_back(tool: Tool, server: Start) -> None:  # noqa: F811
    server("old", *BOTH)
    with Load() as load, Connections() as connections:
        code, report, err = reload(tool, *OPTIONS, "--health-command", "sleep 0.3; false", new=BOTH)
    assert (code, report["result"]) == (8, "rolled-back"), err
    assert (load.unanswered, connections.failed) == ({}, 0)
    assert {*load.answers} == {*connections.served} == {"old", "new"}
    assert serving() == {"old"}


def test_a_canary_of_both(tool: Tool, server: Start) -> None:  # noqa: F811
    server("old", *BOTH)
    with Load() as load, Connections() as connections:
        code, report, err = reload(tool, *OPTIONS, "--canary", "50", "--step", "0.5s", new=BOTH)
    assert code == 0, err
    [step] = report["canary"]
    assert step["to_new"] > 0
    assert step["to_old"] > 0
    assert (load.unanswered, connections.failed) == ({}, 0)
    assert serving() == {"new"}
