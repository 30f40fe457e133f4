"""gRPC, unmodified, with the framing http2 on its port: every call is answered, and its reader sleeps longer."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.kernel import cgroup
from tests.kernel.wire import offload_off
from tests.tool import Tool

PORT = 50051
CALLS, SIZE = 150, 60_000
ECHO = Path(__file__).with_name("grpc_echo.py")
_SIOCSIFMTU = 0x8922


@pytest.fixture
def group(in_netns: None) -> Iterator[Path]:
    """A cgroup that the test is in, and a loopback with the segments of a real wire."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", b"lo", 1500))
    offload_off("lo")
    with cgroup.throw_away() as folder:
        yield folder


def right_answers(spawn: Callable[..., subprocess.Popen[str]]) -> tuple[int, int]:
    """How many calls were answered rightly, and the server's voluntary context switches."""
    server = spawn(sys.executable, ECHO, "serve", PORT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdin is not None
    assert server.stdout.readline() == "ready\n"
    client = spawn(sys.executable, ECHO, "call", PORT, CALLS, SIZE, stdout=subprocess.PIPE)
    right, _ = client.communicate(timeout=60)
    server.stdin.close()
    switches = int(server.stdout.readline())
    server.wait(20)
    return int(right), switches


def test_every_call_is_answered(tool: Tool, group: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    plain, plain_switches = right_answers(spawn)
    tool.ok("autolowat", "attach", "--cgroup", group, "--framing", "http2", "--ports", PORT, "--engine", "solo")
    framed, framed_switches = right_answers(spawn)
    (status,) = tool.ok("autolowat", "status")["attachments"]
    tool.ok("autolowat", "detach", "--cgroup", group)
    print(f"context switches of the server: {plain_switches} plain, {framed_switches} framed; {status}")
    assert (plain, framed) == (CALLS, CALLS)
    assert status["opted_in"] == 2
    # A request of 60,000 bytes is four DATA frames; both directions.
    assert status["frames"] >= CALLS * 8
    assert status["wakeups_saved"] > 0
    assert not any(status["fail_opens"].values())
