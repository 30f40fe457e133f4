"""Crafted clients against a real listener: the kernel is asked what it thinks of each step."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from reuseport_tool.kernel import diag, links, sockets, sysctl
from reuseport_tool.kernel.iterator import TcpListeners
from reuseport_tool.kernel.packets import Family, Wire
from reuseport_tool.models import Protocol

pytestmark = pytest.mark.usefixtures("in_netns")

PORT = 8000
DEADLINE_S = 20.0
_SPINNER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
os.write(1, b".")
while os.read(0, 1):
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass
"""


@pytest.fixture(params=list(Family), ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def wire(in_netns: None, family: Family) -> Iterator[Wire]:
    with Wire(family, PORT) as made:
        yield made


@pytest.fixture
def listener(family: Family, wire: Wire) -> Iterator[socket.socket]:
    with socket.socket(family.socket_family) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        made.bind((family.server, PORT))
        made.listen(16)
        sockets.cookie(made.fileno())  # the iterator shows cookies that somebody has asked for
        yield made


def accept_queue() -> int:
    return diag.bound_sockets(Protocol.TCP)[0].accept_queue or 0


def half_open() -> int:
    with TcpListeners() as listeners:
        (found,) = listeners.read().listeners.values()
        return found.half_open


def test_handshake_request_and_answer(wire: Wire, listener: socket.socket) -> None:
    client = wire.client()
    client.syn()
    assert wire.wait(lambda: client.syn_acks == 1, DEADLINE_S)
    assert (accept_queue(), half_open()) == (0, 1)

    client.ack(b"request")
    assert wire.wait(lambda: accept_queue() == 1, DEADLINE_S)
    assert half_open() == 0

    connection, _ = listener.accept()
    with connection:
        assert connection.recv(100) == b"request"
        connection.sendall(b"ans")
        connection.sendall(b"wer")
        assert wire.wait(lambda: client.answer == b"answer", DEADLINE_S)
    assert not client.reset


def test_a_held_back_ack_makes_the_kernel_resend_and_nobody_resets(wire: Wire, listener: socket.socket) -> None:
    client = wire.client()
    client.syn()
    assert wire.wait(lambda: client.syn_acks == 2, DEADLINE_S)
    assert half_open() == 1

    client.ack(b"request")
    assert wire.wait(lambda: accept_queue() == 1, DEADLINE_S)


def test_fast_open_reaches_the_accept_queue_without_an_ack(wire: Wire, listener: socket.socket) -> None:
    sysctl.write("net.ipv4.tcp_fastopen", str(0x203))
    client = wire.client()
    client.syn(b"request")
    assert wire.wait(lambda: client.syn_acks == 1, DEADLINE_S)
    assert accept_queue() == 1

    connection, _ = listener.accept()
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x03"  # TCP_SYN_RECV
        client.ack()
        assert connection.recv(100) == b"request"


def test_a_refusal_is_heard(wire: Wire) -> None:
    client = wire.client()
    client.syn()
    assert wire.wait(lambda: client.concluded, DEADLINE_S)
    assert client.reset
    assert not client.answer


def test_a_close_with_queued_connections_resets_them(wire: Wire, listener: socket.socket) -> None:
    clients = [wire.client() for _ in range(3)]
    for client in clients:
        client.syn()
    assert wire.wait(lambda: all(client.syn_acks for client in clients), DEADLINE_S)
    for client in clients:
        client.ack(b"request")
    assert wire.wait(lambda: accept_queue() == 3, DEADLINE_S)
    listener.close()
    assert wire.wait(lambda: all(client.reset for client in clients), DEADLINE_S)


def test_waiting_ends_at_the_deadline(wire: Wire) -> None:
    assert not wire.wait(lambda: False, 0.05)


def test_an_address_takes_packets_at_once() -> None:
    """Also while the kernel's worker that inserts the local route cannot run, as on a busy machine."""
    with _busy_cpus() as occupy:
        links.veth("near", "far")
        occupy()
        links.give_address("near", Family.IPV6.server, Family.IPV6.prefix)
        assert _has_local_route(Family.IPV6.server)


@contextlib.contextmanager
def _busy_cpus() -> Iterator[Callable[[], None]]:
    """Processes that, when asked, let nothing but this thread run for 10 ms on any CPU."""
    with contextlib.ExitStack() as stack:
        spinners = []
        for cpu in os.sched_getaffinity(0):
            command = [sys.executable, "-c", _SPINNER, str(cpu)]
            spinner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            stack.callback(spinner.communicate)
            spinners.append(spinner)
            assert spinner.stdout
            assert spinner.stdout.read(1)
        stack.callback(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))

        def occupy() -> None:
            for spinner in spinners:
                assert spinner.stdin
                spinner.stdin.write(b".")

        yield occupy


def _has_local_route(address: str) -> bool:
    wanted = ipaddress.ip_address(address).packed.hex()
    with open("/proc/thread-self/net/ipv6_route") as routes:
        return any(line.split()[:2] == [wanted, "80"] for line in routes)
