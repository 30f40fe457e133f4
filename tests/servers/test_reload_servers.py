"""Real servers, reloaded 20 times under load: no client sees a reset or a refusal (docs/recipes/).

Each server has an arm without the tool, in which the very same restart must lose connections: or
the other arm would prove nothing. What the program counted must be what the kernel counted, and no
more than what was queued when the old side was stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel import commands
from reuseport_tool.waiting import wait_until
from tests.servers import restart, servers
from tests.servers.servers import Server
from tests.tool import Tool

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("servers_end")]

RELOADS = 20
PLAIN_RESTARTS = 5
CLIENTS = 256
QUEUED = 64


@pytest.fixture(scope="session")
def go_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return servers.go(tmp_path_factory.mktemp("go"))


@pytest.fixture(params=["gunicorn", "nginx", "go"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    if request.param == "go":
        built = request.getfixturevalue("go_server")
        assert isinstance(built, Server)
        return built
    return servers.gunicorn() if request.param == "gunicorn" else servers.nginx(tmp_path, "nginx")


def test_a_plain_restart_loses_connections(server: Server) -> None:
    restart.start(server)
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(PLAIN_RESTARTS):
            restart.await_load(QUEUED)
            restart.plainly(server)
        ledger = load.stop()
    restart.assert_resets(ledger)


def test_a_reload_loses_none(tool: Tool, server: Server) -> None:
    restart.start(server)
    reports = []
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(RELOADS):
            restart.await_load(QUEUED)
            reports.append(restart.by_the_tool(tool, server))
        ledger = load.stop()
    lost_none(ledger, reports)
    # The process that a report names is the one that the next reload stops.
    assert [report["new"]["pids"] for report in reports[:-1]] == [report["old"]["pids"] for report in reports[1:]]
    # The Go server is so quick that its queue is empty again when it is told to stop.
    assert some_moved(reports) or server.name == "go"


def test_go_answers_also_what_it_accepted_long_ago(go_server: Server) -> None:
    """http.Server.Shutdown() closes what sent nothing for five whole seconds."""
    restart.start(go_server)
    old = servers.listeners()
    with socket.create_connection((servers.ADDRESS, servers.PORT), timeout=30) as client:
        since = time.monotonic()
        assert wait_until(lambda: time.monotonic() - since > 7, 10)
        commands.terminate(restart.owners_of(old), signal.SIGTERM)
        restart.await_gone(frozenset(member.cookie for member in old))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(4096).endswith(b"ok\n")


def lost_none(ledger: Ledger, reports: list[Any]) -> None:
    print(ledger)
    for report in reports:
        print(report["migrated"], [(step["name"], step["duration_s"]) for step in report["steps"]], report["warnings"])
    assert ledger.answered > len(reports) * QUEUED
    assert ledger.lost == 0
    for report in reports:
        migrated, queued = report["migrated"], report["queued_at_stop"]
        assert migrated["established"] + migrated["syn_recv"] + migrated["new_syn_recv"] == migrated["total"]
        assert migrated["total"] <= queued["accept_queue"] + queued["half_open"]
        assert report["lost"]["migrate_failures"] == 0
        assert report["lost"]["listen_overflows"] == 0


def some_moved(reports: list[Any]) -> bool:
    return any(report["migrated"]["total"] for report in reports)


@pytest.fixture
def haproxy(servers_end: None, tmp_path: Path) -> Server:
    """haproxy in front of a slow application, already serving."""
    os.environ["APP_BUSY_S"] = "0.02"
    try:
        backend = servers.gunicorn(1, servers.BACKEND_PORT, "--threads", "8")
        subprocess.Popen(backend.command, start_new_session=True)
    finally:
        del os.environ["APP_BUSY_S"]
    servers.await_answer(servers.BACKEND_PORT)
    front = servers.haproxy(tmp_path)
    restart.start(front)
    return front


def soft_stop(front: Server) -> list[str]:
    """haproxy's own reload: the new process binds, then tells the old one to finish."""
    owners = restart.owners_of(servers.listeners())
    return [*front.command, "-sf", *map(str, owners)]


def test_haproxy_alone_loses_connections(haproxy: Server) -> None:
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(PLAIN_RESTARTS):
            restart.await_load(QUEUED)
            old = frozenset(member.cookie for member in servers.listeners())
            subprocess.run(soft_stop(haproxy), check=True)
            restart.await_gone(old)
        ledger = load.stop()
    restart.assert_resets(ledger)


def test_haproxy_soft_stop_by_the_tool_loses_none(tool: Tool, haproxy: Server) -> None:
    reports = []
    with Load(servers.ADDRESS, servers.PORT, CLIENTS) as load:
        for _ in range(RELOADS):
            restart.await_load(QUEUED)
            reports.append(tool.ok("reload", servers.PORT, "--run", " ".join(soft_stop(haproxy))))
        ledger = load.stop()
    lost_none(ledger, reports)
    assert some_moved(reports)
    assert wait_until(lambda: len(servers.listeners()) == haproxy.listeners, 30)
