"""The UDP server of `check udp-reload`: it knows nothing of a reload, and ends at SIGTERM without looking back.

python -m reuseport_tool.check.udp_server ADDRESS PORT NAME [--delay S] [--session] [--deaf] [--connect ADDRESS]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import select
import signal
import socket
import time

HELLO, FENCE = b"hello", b"fence"
"""A client says the first to become known. Everybody has an answer to either."""
_WORKERS = 2


def worker(address: str, port: int) -> socket.socket:
    """A socket that joins the group."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock


def main() -> None:
    """Serve: each datagram is answered with the name; with --session only those of clients that it knows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("name")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--session", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--connect")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    workers = [worker(options.address, options.port) for _ in range(_WORKERS)]
    if options.connect:
        connected = worker(options.address, options.port)
        connected.connect((options.connect, 9))
        workers.append(connected)
    print("ready", flush=True)
    late: collections.deque[tuple[float, socket.socket, bytes, tuple[object, ...]]] = collections.deque()
    known: set[object] = set()
    while True:
        wait_s = max(0.0, late[0][0] - time.monotonic()) if late else None
        for sock in select.select([] if options.deaf else workers, [], [], wait_s)[0]:
            with contextlib.suppress(BlockingIOError):
                data, source = sock.recvfrom(2048)
                known |= {source} if data == HELLO else set()
                if data and (not options.session or source in known or data == FENCE):
                    late.append((time.monotonic() + options.delay, sock, data, source))
        while late and late[0][0] <= time.monotonic():
            _, sock, data, source = late.popleft()
            sock.sendto(options.name.encode() + b" " + data, source)


if __name__ == "__main__":
    main()
