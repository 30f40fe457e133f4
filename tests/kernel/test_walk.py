"""A walk over TCP listeners ends with the last one that is wanted, and misses none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from reuseport_tool.kernel import netns, sockets
from reuseport_tool.kernel.iterator import TcpListeners

MANY = 300
PORT = 8080


@pytest.fixture
def cookies() -> Iterator[list[int]]:
    with netns.throw_away(), ExitStack() as stack:
        found = []
        for at in range(MANY):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", PORT + at))
            listener.listen()
            found.append(sockets.cookie(listener.fileno()))
        yield found


def test_one_of_many(cookies: list[int]) -> None:
    with TcpListeners(ordered=False) as listeners:
        walked = [len(listeners.listeners([cookie])) for cookie in cookies]
        assert all(cookie in listeners.listeners([cookie]) for cookie in cookies)
    assert min(walked) == 1
    assert max(walked) == MANY
    assert len(set(walked)) == MANY, "each walk ended somewhere else"


def test_all(cookies: list[int]) -> None:
    with TcpListeners(ordered=False) as listeners:
        assert listeners.listeners(cookies).keys() == listeners.listeners().keys() == set(cookies)


def test_one_that_is_closed_does_not_keep_the_others_from_being_found(cookies: list[int]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", PORT - 1))
        closed.listen()
        gone = sockets.cookie(closed.fileno())
    with TcpListeners(ordered=False) as listeners:
        assert listeners.listeners([gone, *cookies[:3]]).keys() == set(cookies)
        assert not listeners.listeners([])
