"""Sockets that close, or go to another process, between the look at a group and the use of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from reuseport_tool.errors import Closed, MissingCapability, NotFound
from reuseport_tool.group import discover
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel import sockets
from reuseport_tool.models import parse_endpoint
from tests.kernel.conftest import PORT

Start = Callable[..., subprocess.Popen[str]]

PASS_ON = f"""
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", {PORT}))
listener.listen()
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
if os.fork() == 0:
    sys.stdin.readline()
"""


def members() -> list[Member]:
    (group,) = discover.groups(parse_endpoint(str(PORT)))
    return list(group.members)


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(timeout=20)


def test_what_has_closed_is_left_out(server: Start) -> None:
    first, _second = server("first"), server("second")
    seen = members()
    ended(first)
    with discover.descriptors(seen) as fds:
        assert [sockets.cookie(fd) for fd in fds.values()] == list(fds)
        assert set(fds) == {member.cookie for member in members()}
        assert len(fds) == 1


def test_when_all_have_closed(server: Start) -> None:
    only = server("only")
    seen = members()
    ended(only)
    with pytest.raises(Closed, match="have closed"), discover.descriptors(seen):
        pass


def test_another_process_has_it_by_now(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    process = spawn(sys.executable, "-c", PASS_ON, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen = members()
    process.stdin.write("pass it on\n")
    process.stdin.flush()
    process.wait(timeout=20)
    with discover.descriptors(seen) as fds:
        assert set(fds) == {member.cookie for member in seen}


def test_a_socket_that_only_we_hold_is_no_closed_one(in_netns: None) -> None:
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", PORT))
        ours.listen()
        assert {holder.pid for member in members() for holder in member.holders} <= {os.getpid()}
        # Where some processes are hidden, one of them may hold it.
        with pytest.raises((NotFound, MissingCapability)) as raised, discover.descriptors(members()):
            pass
    assert not isinstance(raised.value, Closed)
