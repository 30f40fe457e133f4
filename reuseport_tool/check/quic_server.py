"""The QUIC server of `check udp-reload`: it knows nothing of a reload, and ends at SIGTERM without looking back.

python -m reuseport_tool.check.quic_server ADDRESS PORT [WORKERS]

Each socket is a worker with connections of its own, as in nginx: it chooses an ID for each, answers datagrams that have
it or one that takes its place, and no others.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

from reuseport_tool.check.udp_server import worker
from reuseport_tool.kernel import quic_packets

_ID_BYTES = 8
_WORKERS = 2


class Worker:
    """One socket and its connections."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._known: set[bytes] = set()

    def answer(self) -> None:
        """Read a datagram, and answer it if it is of a connection, or begins one."""
        with contextlib.suppress(BlockingIOError):
            data, client = self._sock.recvfrom(2048)
            if quic_packets.is_long(data):
                if quic_packets.destination(data)[:-1] not in self._known:
                    self._sock.sendto(self._begin(quic_packets.source(data)), client)
            elif data[1:_ID_BYTES] in self._known:
                self._sock.sendto(data, client)

    def _begin(self, client_id: bytes) -> bytes:
        chosen = os.urandom(_ID_BYTES - 1)
        self._known.add(chosen)
        return quic_packets.long(quic_packets.HANDSHAKE, client_id, chosen + b"\0")


def main() -> None:
    """Serve until it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    count = int(sys.argv[3]) if len(sys.argv) > 3 else _WORKERS
    workers = {sock: Worker(sock) for sock in (worker(sys.argv[1], int(sys.argv[2])) for _ in range(count))}
    print("ready", flush=True)
    poll = select.poll()
    by_fd = {sock.fileno(): each for sock, each in workers.items()}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            by_fd[fd].answer()


if __name__ == "__main__":
    main()
