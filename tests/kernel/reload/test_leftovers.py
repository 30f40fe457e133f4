"""The connections that the old side has accepted: shown, waited for, ended."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.conftest import PORT, ask, server_command
from tests.tool import Tool

pytestmark = [
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
Start = Callable[..., subprocess.Popen[str]]
HELD = 5


@pytest.fixture
def held(in_netns: None) -> Iterator[Callable[[int], list[socket.socket]]]:
    """Connections that say nothing; a server that serves one after the other hangs on each: it forks."""
    made: list[socket.socket] = []

    def connect(count: int) -> list[socket.socket]:
        made.extend(socket.create_connection(("127.0.0.1", PORT), timeout=20) for _ in range(count))
        for client in made[-count:]:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        return made

    yield connect
    for client in made:
        client.close()


def is_open(client: socket.socket) -> bool:
    client.settimeout(0.05)
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_they_are_reported_and_left(tool: Tool, server: Start, held: Callable[[int], list[socket.socket]]) -> None:
    old = server("old", "--graceful")
    clients = held(HELD)
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    left = report["leftovers"]
    assert (left["connections"], left["left"], left["ended"]) == (HELD, HELD, 0)
    assert 0 <= left["idle_min_s"] <= left["idle_max_s"]
    assert all(map(is_open, clients))
    assert old.poll() is None
    # The next reloads do not wait for it, and what it holds is not theirs.
    for name in ("newer", "newest"):
        report = tool.ok("reload", PORT, "--kill-leftovers", "--", *server_command(name))
        assert report["leftovers"]["connections"] == 0
    assert all(map(is_open, clients))
    assert ask() == "newest"


def test_they_are_ended_and_no_others(tool: Tool, server: Start, held: Callable[[int], list[socket.socket]]) -> None:
    old = server("old", "--graceful")
    clients = held(HELD)
    other = server("other", "--graceful", port=PORT + 1)
    bystander = socket.create_connection(("127.0.0.1", PORT + 1), timeout=20)
    bystander.sendall(b"hello")
    assert bystander.recv(100) == b"hello"
    options = ("--drain-timeout", "300ms", "--kill-leftovers")
    report = tool.ok("reload", PORT, *options, "--", *server_command("new", "--graceful"))
    left = report["leftovers"]
    assert (left["connections"], left["left"], left["ended"]) == (HELD, 0, HELD)
    assert left["waited_s"] >= 0.3
    assert not any(map(is_open, clients))
    assert is_open(bystander)
    bystander.close()
    assert other.poll() is None
    old.wait(timeout=30)
    # What the new side has accepted is no leftover.
    more = held(1)[-1:]
    assert tool.ok("status", PORT)["groups"][0]["listeners"][0]["flag"] == "working"
    assert all(map(is_open, more))


def test_the_wait_ends_with_them(tool: Tool, server: Start, held: Callable[[int], list[socket.socket]]) -> None:
    server("old", "--graceful")
    clients = held(HELD)
    output = ("--output", "/dev/null")  # or the new server would keep our pipe open
    process = subprocess.Popen(
        tool.command("reload", PORT, "--drain-timeout", "60s", *output, "--", *server_command("new"), as_json=False),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if f"still holds {HELD} accepted connections" in line:
            break
    else:
        pytest.fail("nothing was told")
    for client in clients:
        client.close()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"{HELD} accepted connections" in out
    assert "0 left" in out


def test_a_server_that_closes_them_leaves_none(tool: Tool, server: Start) -> None:
    server("old")
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    assert report["leftovers"]["connections"] == report["leftovers"]["left"] == 0
