"""A pause of a reload ends with the event of a listener, not with the next look."""

from __future__ import annotations

import socket
import threading

import pytest

from reuseport_tool.errors import MissingCapability
from reuseport_tool.kernel import interrupts, listen_events
from reuseport_tool.kernel.interrupts import Clock
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.reload.live import Listeners
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT

GROUP = Endpoint(protocol=Protocol.TCP, address="127.0.0.1", port=PORT)
DEADLINE_S = 60.0
LATER_S = 2.0


def listeners(clock: Clock) -> Listeners:
    return Listeners(None, dict, clock)


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"], ids=["group", "another-on-its-port"])
def test_a_new_listener_ends_a_pause(in_netns: None, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Without the event the first pause would last until the deadline."""
    monkeypatch.setattr(interrupts, "_FIRST_S", 10 * DEADLINE_S)
    sock = socket.socket()
    sock.bind((address, PORT))
    with sock, Clock() as clock, listeners(clock).watched([GROUP]) as told:
        assert told
        start_s = clock.now_s()
        threading.Timer(LATER_S, sock.listen).start()
        # The event comes a moment before the state. Something else may have ended a pause: a child, long before.
        assert clock.wait(lambda: wait_until(lambda: is_listening(sock), LATER_S / 10), DEADLINE_S, told)
        assert clock.now_s() - start_s < DEADLINE_S


def test_other_ports_do_not(in_netns: None) -> None:
    with Clock() as clock, listeners(clock).watched([GROUP]) as told, socket.create_server(("127.0.0.1", PORT + 1)):
        assert told
        assert not clock.wait(lambda: False, 0.05, told)


def test_udp_is_looked_for(in_netns: None) -> None:
    udp = Endpoint(protocol=Protocol.UDP, address="127.0.0.1", port=PORT)
    with Clock() as clock, listeners(clock).watched([GROUP, udp]) as told:
        assert not told


def test_without_permission_pauses_are_short(in_netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MissingCapability("not permitted")

    monkeypatch.setattr(listen_events, "ListenEvents", refuse)
    with Clock() as clock, listeners(clock).watched([GROUP]) as told:
        assert not told
