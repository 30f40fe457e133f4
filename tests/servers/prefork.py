"""A server whose master forks workers, each with a listener of its own, and respawns those that end.

Run as `python -m tests.servers.prefork ADDRESS PORT WORKERS [mptcp]`. With `mptcp` it listens as Go 1.24 does: with
MPTCP where the network namespace has it on. It prints "PID COOKIE NANOSECONDS" for each
listener: CLOCK_MONOTONIC right after listen(). SIGTERM ends a worker when it has answered what it is
at, and the master with its workers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from reuseport_tool.kernel import sockets

_BUSY_S = 0.002
_IPPROTO_MPTCP = 262
_BACKLOG = 4096
# More than the load gives an answer: a server that closes on a client which has not sent yet resets it.
_PATIENCE_S = 60.0


def main() -> None:
    address, port, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    protocol = _IPPROTO_MPTCP if sys.argv[4:] == ["mptcp"] else 0
    signal.signal(signal.SIGTERM, lambda *_: _end_all())
    for _ in range(workers):
        _fork(address, port, protocol)
    while True:
        _children.discard(os.wait()[0])
        _fork(address, port, protocol)


_children: set[int] = set()


def _end_all() -> None:
    for pid in _children:
        os.kill(pid, signal.SIGTERM)
    os._exit(0)


def _fork(address: str, port: int, protocol: int) -> None:
    pid = os.fork()
    if pid:
        _children.add(pid)
        return
    try:
        _work(_socket(protocol), address, port)
    finally:
        os._exit(1)


def _socket(protocol: int) -> socket.socket:
    """With MPTCP off the kernel refuses such a socket, and Go takes one of TCP."""
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    except OSError:
        return socket.socket()


def _work(listener: socket.socket, address: str, port: int) -> None:
    asked_to_end = False

    def end(*_: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, end)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((address, port))
    listener.listen(_BACKLOG)
    now = time.monotonic_ns()
    os.write(1, f"{os.getpid()} {sockets.cookie(listener.fileno())} {now}\n".encode())
    listener.settimeout(0.05)
    while not asked_to_end:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        _answer(client)
    listener.close()
    os._exit(0)


def _answer(client: socket.socket) -> None:
    with client:
        client.settimeout(_PATIENCE_S)
        try:
            client.recv(4096)
            time.sleep(_BUSY_S)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\nok\n")
        except OSError:
            pass


if __name__ == "__main__":
    main()
