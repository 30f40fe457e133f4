"""aioquic, server and client as they are: no connection dies in a reload, and all do in a plain restart."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers import quic_load
from tests.servers.quic_load import Connection, Echo, Load
from tests.tool import Done, Tool

PORT = 4433
CONNECTIONS = 8
MORE = 8  # answers after the switch
ADDRESSES = ["127.0.0.1", "::1"]

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")


def endpoint(address: str) -> str:
    return f"udp://[{address}]:{PORT}" if ":" in address else f"udp://{address}:{PORT}"


class Servers:
    """Starts aioquic servers in the test's namespace."""

    def __init__(self, address: str, folder: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
        self._address = address
        self._files = quic_load.certificate(folder)
        self._spawn = spawn

    def command(self, name: str) -> list[str]:
        where = (self._address, PORT, name, *self._files)
        return [sys.executable, "-m", "tests.servers.quic_server", *map(str, where)]

    def start(self, name: str) -> subprocess.Popen[str]:
        process = self._spawn(*self.command(name), stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], 30)
        assert readable
        assert process.stdout.readline() == "ready\n"
        return process


class Reload:
    """A reload that runs beside the test."""

    def __init__(self, tool: Tool, address: str, *options: object) -> None:
        self._tool = tool
        self._endpoint = endpoint(address)
        self._before = self._working()
        self._done: list[Done] = []
        arguments = ("reload", self._endpoint, "--output", "/dev/null", *options)
        self._thread = threading.Thread(target=lambda: self._done.append(tool.run(*arguments)))
        self._thread.start()

    def _working(self) -> int:
        return int(self._tool.ok("status", self._endpoint)["groups"][0]["working_generation"])

    def wait_for_switch(self) -> None:
        deadline = time.monotonic() + 60
        while self._working() == self._before:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline

    def report(self) -> Any:
        self._thread.join(90)
        [done] = self._done
        assert done.code == 0, (done.err, done.out)
        return json.loads(done.out)


def dead(connections: list[Connection]) -> list[str]:
    return [connection.dead for connection in connections if connection.dead]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("mode", ["address", "quic"])
def test_no_connection_dies(
    tool: Tool, tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]], address: str, mode: str
) -> None:
    servers = Servers(address, tmp_path, spawn)
    servers.start("old")
    tool.ok("attach", endpoint(address), "--flows", mode)
    with Load(address, PORT, Echo) as load:
        before = load.connect(CONNECTIONS)
        run = Reload(tool, address, "--flow-timeout", "1s", "--", *servers.command("new"))
        run.wait_for_switch()
        after = load.connect(CONNECTIONS)
        if mode == "quic":
            load.rebind(before + after)
        wanted = {each: each.answers + MORE for each in before + after}
        load.wait(lambda: all(each.dead or each.answers >= count for each, count in wanted.items()), 30)
        load.end(before)
        report = run.report()
        assert not dead(before + after)
        assert {tuple(connection.servers) for connection in before} == {("old",)}
        assert {tuple(connection.servers) for connection in after} == {("new",)}
        [moved] = report["datagrams"]
        assert (moved["flows"], moved["cut"], moved["evicted"]) == (mode, 0, 0)
        counters = tool.ok("status", endpoint(address))["groups"][0]["flows"]["counters"]
        assert counters["moved"] == (2 * CONNECTIONS if mode == "quic" else 0)
        os.kill(report["new"]["pids"][0], signal.SIGKILL)


def test_a_plain_restart_kills_every_connection(
    in_netns: None, tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """The arm without the tool."""
    servers = Servers("127.0.0.1", tmp_path, spawn)
    old = servers.start("old")
    with Load("127.0.0.1", PORT, Echo) as load:
        before = load.connect(CONNECTIONS)
        assert not dead(before)
        servers.start("new")
        old.terminate()
        old.wait()
        load.wait(lambda: len(dead(before)) == CONNECTIONS, 30)
        assert len(dead(before)) == CONNECTIONS


def test_with_address_alone_a_moved_connection_dies(
    tool: Tool, tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """The arm without connection IDs."""
    servers = Servers("127.0.0.1", tmp_path, spawn)
    servers.start("old")
    tool.ok("attach", endpoint("127.0.0.1"), "--flows", "address")
    with Load("127.0.0.1", PORT, Echo) as load:
        before = load.connect(CONNECTIONS)
        run = Reload(tool, "127.0.0.1", "--flow-timeout", "1s", "--", *servers.command("new"))
        run.wait_for_switch()
        load.rebind(before)
        load.wait(lambda: len(dead(before)) == CONNECTIONS, 30)
        assert len(dead(before)) == CONNECTIONS
        os.kill(run.report()["new"]["pids"][0], signal.SIGKILL)
