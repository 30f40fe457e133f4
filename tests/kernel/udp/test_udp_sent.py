"""What sockets send is counted by socket, at the moment that they send."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from reuseport_tool.kernel import rcu, sockets
from reuseport_tool.kernel.udp_sent import SentPackets

pytestmark = pytest.mark.needs("TCP iterator")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_only_what_a_watched_socket_sends_is_counted(in_netns: None, family: int, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as watched, socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind((address, 0))
        with SentPackets([sockets.cookie(watched.fileno())]) as sent:
            other.sendto(b"not watched", other.getsockname())
            assert sent.read()[sockets.cookie(watched.fileno())].last_ns == 0
            before = time.monotonic_ns()
            for _ in range(3):
                watched.sendto(b"", other.getsockname())
            found = sent.read()[sockets.cookie(watched.fileno())]
            assert found.packets == 3
            assert before <= found.last_ns <= time.monotonic_ns()


def test_waiting_for_readers_ends() -> None:
    waiting = threading.Thread(target=rcu.wait_for_readers, daemon=True)
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive()
