"""A server that listens with MPTCP, as one of Go 1.24 does by default (docs/recipes/go.md).

The kernel runs no reuseport program for MPTCP. So the tool refuses such a server and leaves it alone, and
a plain restart loses connections. With net.mptcp.enabled=0, and the server started anew, a reload loses none.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from reuseport_tool.bench.load import Load
from reuseport_tool.kernel import commands
from tests.servers import restart, servers
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("servers_end")

CLIENTS = 128
QUEUED = 32
RESTARTS = 3
_DEADLINE_S = 30.0


def command() -> list[str]:
    return [sys.executable, "-m", "tests.servers.prefork", servers.ADDRESS, str(servers.PORT), "1", "mptcp"]


def set_mptcp(enabled: bool) -> None:
    """Of this network namespace."""
    subprocess.run(["sysctl", "-qw", f"net.mptcp.enabled={int(enabled)}"], check=True)


def begin() -> subprocess.Popen[str]:
    """A server of which the first listener is there. Its master ends its workers."""
    made = subprocess.Popen(command(), start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline()
    return made


def end(server: subprocess.Popen[str]) -> None:
    commands.terminate([server.pid], signal.SIGTERM)
    server.wait(_DEADLINE_S)


@pytest.fixture
def running(servers_end: None, request: pytest.FixtureRequest) -> Iterator[list[subprocess.Popen[str]]]:
    """The servers that run, first one, with MPTCP on or off."""
    set_mptcp(request.param)
    found = [begin()]
    assert all(member.socket.mptcp is request.param for member in servers.listeners())
    yield found
    for server in found:
        end(server)


@pytest.mark.parametrize("running", [True], indirect=True)
@pytest.mark.usefixtures("running")
def test_with_mptcp_the_tool_leaves_the_server_alone(tool: Tool) -> None:
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        restart.await_queue(QUEUED)
        assert "MPTCP" in tool.fails(4, "reload", servers.PORT, "--", *command())["message"]
        ledger = load.stop()
    assert ledger.answered
    assert ledger.lost == 0


@pytest.mark.parametrize("running", [True, False], ids=["mptcp", "tcp"], indirect=True)
def test_a_plain_restart_loses(running: list[subprocess.Popen[str]]) -> None:
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(RESTARTS):
            restart.await_queue(QUEUED)
            running.append(begin())
            end(running.pop(0))
        ledger = load.stop()
    print(ledger)
    assert ledger.answered
    assert ledger.lost


@pytest.mark.parametrize("running", [False], indirect=True)
@pytest.mark.usefixtures("running")
def test_without_mptcp_a_reload_loses_none(tool: Tool) -> None:
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(RESTARTS):
            restart.await_queue(QUEUED)
            report = tool.ok("reload", servers.PORT, "--output", "/dev/null", "--", *command())
            assert report["result"] == "reloaded"
        ledger = load.stop()
    print(ledger)
    assert ledger.answered
    assert ledger.lost == 0
