"""How the program finds an open slot: of large generations, of nearly empty ones, and fairly."""

from __future__ import annotations

import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.group.layout import CAPACITY_LEAST
from reuseport_tool.kernel import rlimit
from tests.kernel.conftest import PORT, server_command
from tests.tool import Tool

MANY = 2 * CAPACITY_LEAST + 96
ADDRESS = ("127.0.0.1", PORT)


@pytest.fixture
def room(in_netns: None) -> Iterator[ExitStack]:
    with rlimit.descriptors(4 * MANY), ExitStack() as stack:
        yield stack


def listen(room: ExitStack, count: int) -> list[socket.socket]:
    made = []
    for _ in range(count):
        sock = room.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(ADDRESS)
        sock.listen(1024)
        made.append(sock)
    return made


def connect(room: ExitStack, count: int) -> None:
    for _ in range(count):
        client = room.enter_context(socket.create_connection(ADDRESS, timeout=20))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def accepted(listeners: list[socket.socket]) -> Counter[int]:
    """How many connections wait at each open listener."""
    counts: Counter[int] = Counter()
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in listeners if sock.fileno() >= 0}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while ready := poll.poll(0):
        for fd, _ in ready:
            by_fd[fd].accept()[0].close()
            counts[listeners.index(by_fd[fd])] += 1
    return counts


def counters(tool: Tool) -> tuple[int, int]:
    found = tool.ok("status", PORT)["groups"][0]["counters"]
    return found["selected"], found["fallback"]


def test_a_generation_is_as_large_as_it_must_be(tool: Tool, room: ExitStack) -> None:
    listeners = listen(room, MANY)
    report = tool.ok("attach", PORT)["attached"][0]
    assert len(report["registered"]) == MANY
    connect(room, 400)
    assert sum(accepted(listeners).values()) == 400
    assert counters(tool) == (400, 0)
    slots = {entry["slot"] for entry in tool.ok("status", PORT)["groups"][0]["listeners"]}
    assert slots == set(range(MANY))


@pytest.mark.usefixtures("end_owners")
def test_a_reload_makes_room_for_all_of_the_new_side(
    tool: Tool, room: ExitStack, server: Callable[..., object], tmp_path: Path
) -> None:
    many = CAPACITY_LEAST + 8
    server("one", "--listeners", many)
    command = server_command("two", "--listeners", many)
    report = tool.ok("reload", PORT, "--output", tmp_path / "log", "--listeners", many, "--", *command)
    assert report["result"] == "reloaded"
    listeners = tool.ok("status", PORT)["groups"][0]["listeners"]
    assert sum(entry["flag"] == "working" for entry in listeners) == many


@pytest.mark.parametrize("left", [0, 1, CAPACITY_LEAST - 1])
def test_the_last_open_listener_is_found(tool: Tool, room: ExitStack, left: int) -> None:
    listeners = listen(room, CAPACITY_LEAST)
    tool.ok("attach", PORT)
    for number, sock in enumerate(listeners):
        if number != left:
            sock.close()
    connect(room, 50)
    assert accepted(listeners) == {left: 50}
    assert counters(tool) == (50, 0)


def test_what_closed_ones_would_get_is_dealt_out_to_all(tool: Tool, room: ExitStack) -> None:
    listeners = listen(room, 16)
    tool.ok("attach", PORT)
    for number in range(8):
        listeners[number].close()
    connect(room, 1600)
    counts = accepted(listeners)
    assert sorted(counts) == list(range(8, 16))
    assert max(counts.values()) < 1.5 * 1600 / 8, counts
    assert min(counts.values()) > 0.6 * 1600 / 8, counts
