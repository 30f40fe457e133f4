"""TCP on 127.0.0.1 of a throw-away namespace: listeners of one group, and one migration done for real."""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from contextlib import ExitStack
from dataclasses import dataclass

from reuseport_tool.errors import ToolError
from reuseport_tool.waiting import readable, wait_until

_ADDRESS = "127.0.0.1"
_QUEUED_TIMEOUT_S = 1.0
# close(2) of a listener migrates before it returns (inet_csk_listen_stop()), so this is slack.
_WOKEN_TIMEOUT_S = 0.01


@dataclass(frozen=True)
class Moved:
    """What happened to a connection that waited in a listener which was closed.

    Attributes:
        accepted: the group's other listener has it.
        woken: a reader of that listener would have been woken.
    """

    accepted: bool
    woken: bool


def listener(port: int, backlog: int = 16) -> socket.socket:
    """A non-blocking member of the group on `port`; the caller closes it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((_ADDRESS, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def listeners(stack: ExitStack, port: int, number: int, backlog: int) -> list[socket.socket]:
    """A whole group, closed by `stack`."""
    return [stack.enter_context(listener(port, backlog)) for _ in range(number)]


def connect(port: int) -> socket.socket:
    """A client; the handshake is complete when this returns. The caller closes it."""
    return socket.create_connection((_ADDRESS, port), timeout=_QUEUED_TIMEOUT_S)


def wait_queued(sock: socket.socket) -> None:
    """Return when a connection waits in the listener. Raises ToolError after a second."""
    if not readable(sock, _QUEUED_TIMEOUT_S):
        raise ToolError("a connection over loopback did not arrive", hint="is loopback filtered?")


def wait_received(sock: socket.socket, size: int) -> None:
    """Return when so many bytes wait in the socket, whether or not it is readable. Raises ToolError after a second."""

    def received() -> bool:
        return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder) >= size

    if not wait_until(received, _QUEUED_TIMEOUT_S, 0.001):
        raise ToolError("data over loopback did not arrive", hint="is loopback filtered?")


def migrate(closing: socket.socket, target: socket.socket) -> Moved:
    """Close a listener that has one connection queued, and look for it in the other one.

    epoll is the witness of the wake-up. A level-triggered descriptor gets on an epoll's ready list by
    the listener's wake-up callback only (fs/eventpoll.c, ep_poll_callback()), and that list is all that
    a sleeping epoll_wait(2) looks at: a queued connection that nobody announced stays unseen.
    """
    with select.epoll() as epoll:
        epoll.register(target, select.EPOLLIN)
        if epoll.poll(0):
            raise ToolError("a connection reached the wrong listener")
        closing.close()
        woken = bool(epoll.poll(_WOKEN_TIMEOUT_S))
    try:
        target.accept()[0].close()
    except BlockingIOError:
        return Moved(accepted=False, woken=False)
    return Moved(accepted=True, woken=woken)
