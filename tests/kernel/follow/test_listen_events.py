"""The event of a listener that comes: all that the kernel compares before it lets the socket into a group."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from reuseport_tool.kernel import diag, netns
from reuseport_tool.kernel.listen_events import ListenEvent, ListenEvents
from reuseport_tool.models import Identity, Protocol, parse_endpoint
from tests.kernel.conftest import PORT

SOON_S = 0.2
SO_REUSEPORT, SO_BINDTODEVICE, IPV6_V6ONLY = 15, 25, 26


def bind(
    address: str, *, v6only: bool | None = None, device: str | None = None, reuseport: bool = True
) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, int(reuseport))
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_V6ONLY, int(v6only))
    if device is not None:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
    sock.bind((address, PORT))
    sock.listen(8)
    return sock


def next_event(events: ListenEvents) -> ListenEvent:
    readable, _, _ = select.select([events], [], [], 20)
    assert readable, "no event came"
    found, lost = events.drain()
    assert not lost
    assert len(found) == 1
    return found[0]


GROUPS = {
    "tcp://127.0.0.1:8080": lambda: bind("127.0.0.1"),
    "tcp://0.0.0.0:8080": lambda: bind("0.0.0.0"),
    "tcp://0.0.0.0%lo:8080": lambda: bind("0.0.0.0", device="lo"),
    "tcp://[::]:8080": lambda: bind("::", v6only=False),
    "tcp://[::]:8080,v6only": lambda: bind("::", v6only=True),
    "tcp://[::%lo]:8080,v6only": lambda: bind("::", v6only=True, device="lo"),
    "tcp://[::1]:8080": lambda: bind("::1"),
    "tcp://[::ffff:127.0.0.1]:8080": lambda: bind("::ffff:127.0.0.1"),
}


@pytest.mark.needs("TCP iterator")
def test_the_event_names_the_group_as_sock_diag_does(in_netns: None) -> None:
    """Every kind of group at once: the kernel keeps them apart, and so do we."""
    with ListenEvents(Protocol.TCP, ()) as events, ExitStack() as stack:
        for name, begin in GROUPS.items():
            sock = stack.enter_context(begin())
            event = next_event(events)
            assert event.listener is not None
            expected = Identity(endpoint=parse_endpoint(name), uid=os.geteuid(), netns=netns.identity())
            assert event.listener.identity == expected
            assert str(event.listener.identity.endpoint) == name
            assert event.listener.inode == os.fstat(sock.fileno()).st_ino
            assert event.listener.reuseport
            assert event.pid == os.getpid()
        found = {str(entry.endpoint): entry.inode for entry in diag.bound_sockets(Protocol.TCP)}
    assert set(found) == set(GROUPS)


@pytest.mark.needs("TCP iterator")
def test_a_listener_without_reuseport_and_one_of_another_port_and_namespace(in_netns: None) -> None:
    with ListenEvents(Protocol.TCP, [PORT]) as events:
        with socket.create_server(("127.0.0.1", PORT + 1)), netns.throw_away(), bind("127.0.0.1"):
            assert events.drain() == ([], False)
        with bind("127.0.0.1", reuseport=False):
            event = next_event(events)
    assert event.listener is not None
    assert not event.listener.reuseport


LISTEN_LATER = f"""
import os, socket, sys, time
sys.stdin.readline()
sock = socket.create_server(("127.0.0.1", {PORT}), reuse_port=True)
print(time.monotonic_ns(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.needs("TCP iterator")
def test_the_process_is_named_within_a_moment_from_another_pid_namespace_too(in_netns: None) -> None:
    """A container's server has another number inside; the event has the one that we see."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", LISTEN_LATER]
    with (
        ListenEvents(Protocol.TCP, [PORT]) as events,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent,
    ):
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write("\n")
        parent.stdin.flush()
        event = next_event(events)
        seen_ns = time.monotonic_ns()
        parent.stdout.readline()
        with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as children:
            assert event.pid == int(children.read())
        parent.stdin.close()
    assert (seen_ns - event.time_ns) / 1e9 < SOON_S
