"""What an old server still holds, as `status --watch` counts it: by sockets and their holders, at a bounded cost."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from reuseport_tool.group.old_side import OldSides
from reuseport_tool.group.status import Observer
from reuseport_tool.kernel import processes
from reuseport_tool.models import OldSide, Status
from tests.kernel.conftest import PORT
from tests.tool import Tool

# It listens, accepts as many connections as it is told, and closes its listener when it is told.
SERVER = f"""
import socket, sys
listener = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind((sys.argv[1], {PORT}))
listener.listen()
held = []
for line in sys.stdin:
    if line == "close\\n":
        listener.close()
    else:
        held += [listener.accept() for _ in range(int(line))]
    print("done", flush=True)
"""
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(in_netns: None) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(address: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", SERVER, address]
            made = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(made.kill)
            return made

        yield started


def tell(server: subprocess.Popen[str], word: object) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    print(word, file=server.stdin, flush=True)
    assert server.stdout.readline() == "done\n"


def seen(tool: Tool, old: int | None = None) -> OldSide:
    """What a look finds; the listeners of process `old` are of an older generation."""
    with Observer(None, tool.bpffs) as observer:
        (group,) = observer.read().groups
    flagged = tuple(replace(entry, flag="old" if entry.pid == old else "working") for entry in group.listeners)
    (found,) = OldSides().add(Status(groups=(replace(group, listeners=flagged),))).groups
    assert found.old_side is not None
    return found.old_side


@pytest.mark.parametrize(("address", "asked"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")])
def test_connections_of_a_server_that_has_no_listener_any_more(
    tool: Tool, start: Start, address: str, asked: str
) -> None:
    old = start(address)
    with ExitStack() as stack:

        def connect(count: int) -> None:
            for _ in range(count):
                stack.enter_context(socket.create_connection((asked, PORT), timeout=20))

        wait_for(old, lambda: connect(3))
        tell(old, 3)
        assert seen(tool).connections == 0
        assert (seen(tool, old.pid).connections, seen(tool, old.pid).pids) == (3, (old.pid,))
        new = start(address)
        tell(old, "close")
        wait_for(new, lambda: connect(2))
        tell(new, 1)  # the other one waits for accept(): nobody's yet
        assert (seen(tool).connections, seen(tool).pids) == (3, (old.pid,))
        old.kill()
        old.wait()
        assert (seen(tool).connections, seen(tool).pids) == (0, ())


def wait_for(server: subprocess.Popen[str], connect: Callable[[], None]) -> None:
    """Connect when the server listens."""
    tell(server, 0)
    connect()


def test_what_may_not_be_seen_is_unknown(tool: Tool, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a monitor without rights, which sees connections, and not who holds them."""
    server = start("127.0.0.1")
    tell(server, 0)
    with socket.create_connection(("127.0.0.1", PORT), timeout=20), Observer(None, tool.bpffs) as observer:
        tell(server, 1)
        status = observer.read()
        monkeypatch.setattr(processes, "holders", lambda inodes, among=None: {inode: [] for inode in inodes})
        monkeypatch.setattr(processes, "some_are_hidden", lambda: True)
        assert OldSides().add(status).groups[0].old_side is None


def test_a_look_rests_longer_than_it_took(tool: Tool, start: Start) -> None:
    tell(start("127.0.0.1"), 0)
    with Observer(None, tool.bpffs) as observer:
        status = observer.read()
    times = iter([0.0, 1.0, 20.9, 21.0, 21.5, 22.0])
    sides = OldSides(lambda: next(times))
    looks = [sides.add(status).groups[0].old_side for _ in range(4)]  # at 0 (until 1), 20.9, 21 (until 21.5), 22
    assert looks[0] is looks[1] is not looks[2]
    assert looks[2] is looks[3]
