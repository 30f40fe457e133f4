"""A small HTTP server, a process of its own: `python -m reuseport_tool.bench.server ADDRESS PORT`.

It answers connections one after another. SIGTERM closes its listeners; with `--accept-first` it accepts
from each until EAGAIN before, and answers what it has accepted afterwards. It ends with its standard
input, where that is a pipe: with whoever started it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import stat
import sys
import time

END_OF_ANSWER = "answered\n"
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n" + END_OF_ANSWER.encode()
_DEFER_ACCEPT_S = 5


def main() -> None:
    options = _arguments()
    try:
        listeners = [_listen(options) for _ in range(options.listeners)]
    except OSError as error:
        sys.exit(f"cannot listen on {options.address}:{options.port}: {error.strerror}")
    _Server(listeners, options.service_us / 1e6).serve()
    accepted = [client for listener in listeners for client in _accept_all(listener)] if options.accept_first else []
    for listener in listeners:
        listener.close()
    for client in accepted:
        _answer(client)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--listeners", type=int, default=1)
    parser.add_argument("--backlog", type=int, default=4096)
    parser.add_argument("--service-us", type=int, default=0, help="how long each request takes")
    parser.add_argument("--defer-accept", action="store_true", help="accept when the request is there")
    parser.add_argument("--accept-first", action="store_true")
    return parser.parse_args()


def _listen(options: argparse.Namespace) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if options.defer_accept:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT_S)
    listener.bind((options.address, options.port))
    listener.listen(options.backlog)
    return listener


class _Server:
    def __init__(self, listeners: list[socket.socket], service_s: float) -> None:
        self._by_fd = {listener.fileno(): listener for listener in listeners}
        self._service_s = service_s
        self._epoll = select.epoll()
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            self._epoll.register(sys.stdin, select.EPOLLIN)
        self._told, tell = socket.socketpair()
        tell.setblocking(False)
        self._tell = tell
        self._epoll.register(self._told, select.EPOLLIN)
        # A handler that raised could do so between accept(2) and the answer.
        signal.set_wakeup_fd(tell.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)

    def serve(self) -> None:
        """Until SIGTERM, or the end of standard input."""
        while True:
            for fd, _ in self._epoll.poll():
                if fd not in self._by_fd:
                    return
                with contextlib.suppress(BlockingIOError):  # it may have moved on to another listener
                    client, _ = self._by_fd[fd].accept()
                    if self._service_s:
                        time.sleep(self._service_s)
                    _answer(client)


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    accepted = []
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    return accepted


def _answer(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):  # its client may be gone
        client.setblocking(True)
        if client.recv(4096):
            client.sendall(ANSWER)


if __name__ == "__main__":
    main()
