"""A server with many listeners for `bench speed`: some processes, each with a listener on each of some addresses."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

_BACKLOG = 64


def main() -> None:
    """many_server.py PORT WORKERS ADDRESSES. Ends all workers when it is told to stop."""
    port, workers, addresses = map(int, sys.argv[1:4])
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _serve(port, addresses)
        children.append(child)

    def stop(*_: object) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        os.waitpid(child, 0)


def address(number: int) -> str:
    """The address with a number from 0 on."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def _serve(port: int, addresses: int) -> None:
    poll = select.poll()
    listeners = {}
    for number in range(addresses):
        listener = socket.create_server((address(number), port), backlog=_BACKLOG, reuse_port=True)
        listeners[listener.fileno()] = listener
        poll.register(listener, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            listeners[fd].accept()[0].close()


if __name__ == "__main__":
    main()
