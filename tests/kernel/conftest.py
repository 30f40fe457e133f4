"""Fixtures of the kernel tests: small servers, queued clients, snapshots."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.group import places
from tests.kernel.needs import require
from tests.kernel.readable import READABLE
from tests.tool import Tool

PORT = 8080
SERVER = [sys.executable, str(Path(__file__).parent / "server.py")]
_START_S = 20.0


@pytest.fixture(autouse=True)
def needed(request: pytest.FixtureRequest) -> None:
    """What the test's marker `needs` names must be there."""
    if os.geteuid() == 0:
        for marker in request.node.iter_markers("needs"):
            for name in marker.args:
                require(name)


def server_command(name: str, *options: object, port: int = PORT) -> list[str]:
    return [*SERVER, str(port), name, *map(str, options)]


def until(path: Path) -> str:
    """A shell command that ends when a file is there."""
    return f"until [ -e {path} ]; do sleep 0.05; done"


@pytest.fixture(scope="module")
def readable() -> Iterator[None]:
    """Other users can read the checkout, at READABLE."""
    with READABLE.opened():
        yield


def begin_reload(tool: Tool, healthy: Path) -> subprocess.Popen[bytes]:
    """A reload whose new server is not healthy until a file is there."""
    health = ("--health-command", until(healthy), "--health-timeout", 60)
    command = tool.command("reload", PORT, *health, "--", *server_command("new"))
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.fixture
def server(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Start a server of server.py and wait until it listens."""

    def start(name: str, *options: object, port: int = PORT) -> subprocess.Popen[str]:
        process = spawn(*server_command(name, *options, port=port), stdout=subprocess.PIPE)
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], _START_S)
        assert readable, f"server {name} is not ready"
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@pytest.fixture
def end_owners(in_netns: None) -> Iterator[None]:
    """End the servers that the tool started in the test's namespace: whoever still holds a listener."""
    yield
    from reuseport_tool.kernel import commands, diag, processes
    from reuseport_tool.models import Protocol

    held = processes.holders([entry.inode for entry in diag.bound_sockets(Protocol.TCP)])
    commands.end(sorted({holder.pid for holders in held.values() for holder in holders}))


class Clients:
    """Connections with a request that waits in an accept queue."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def connect(self, count: int, port: int = PORT, address: str = "127.0.0.1") -> None:
        for _ in range(count):
            client = socket.create_connection((address, port), timeout=20)
            client.sendall(b"request")
            self.sockets.append(client)

    def answers(self) -> dict[str, int]:
        """How many got which answer; "reset" and "closed" for those that got none."""
        counts: dict[str, int] = {}
        for client in self.sockets:
            try:
                answer = client.recv(1024).decode() or "closed"
            except ConnectionResetError:
                answer = "reset"
            counts[answer] = counts.get(answer, 0) + 1
        self.close()
        return counts

    def close(self) -> None:
        while self.sockets:
            self.sockets.pop().close()


@pytest.fixture
def clients(in_netns: None) -> Iterator[Clients]:
    made = Clients()
    yield made
    made.close()


def ask(port: int = PORT, address: str = "127.0.0.1") -> str:
    """The name of the server that answers a new connection."""
    with socket.create_connection((address, port), timeout=20) as client:
        client.sendall(b"request")
        return client.recv(1024).decode()


def snapshot(tool: Tool) -> Any:
    """Everything of the namespace's groups that a failed command must leave as it was: all but its record."""
    status = tool.ok("status")
    for group in status["groups"]:
        group.pop("counters")
        group.pop("last_reload")
        if group["program"]:
            group["program"].pop("id")
    assert tool.bpffs is not None
    left = (path for path in tool.bpffs.rglob("*") if not path.is_dir() or not any(path.iterdir()))
    pins = [
        str(path.relative_to(tool.bpffs)) for path in left if not path.name.endswith((".debug", places.LAST_RELOAD))
    ]
    return status, sorted(pins)
