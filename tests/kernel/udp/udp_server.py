"""A UDP server with two workers' sockets: answers each datagram with its name, after a while if so asked.

    udp_server.py PORT NAME [--address A] [--delay S] [--wait-for FILE] [--deaf] [--tcp] [--connect]
                  [--polite] [--uid N] [--talk-to A] [--deaf-from FILE]

With --connect it answers each client from a socket of its own, as haproxy does for QUIC, until the client sends "end".
It prints "ready", and ends at SIGTERM without looking back, as servers do that know nothing of a reload; with --polite
it answers first what it has read.
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


def bound(address: str, port: int, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    sock.setblocking(False)
    if kind == socket.SOCK_STREAM:
        sock.listen(512)
    return sock


def greet(listener: socket.socket, name: bytes) -> None:
    """Answer a TCP connection, and end it."""
    client, _ = listener.accept()
    client.sendall(name)
    client.close()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("name", type=str.encode)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--uid", type=int, help="of the owner of its sockets")
    parser.add_argument("--deaf-from", help="reading nothing any more when this file is there")
    parser.add_argument("--talk-to", help="an address that gets datagrams all the time, at the discard port")
    parser.add_argument("--wait-for", help="bound, and reading nothing until this file is there")
    for flag in ("--deaf", "--tcp", "--connect", "--polite"):  # deaf: to datagrams
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number) if options.polite else os._exit(0))
    if options.uid is not None:
        os.setuid(options.uid)
    workers = [bound(options.address, options.port, socket.SOCK_DGRAM) for _ in range(2)]
    listeners = [bound(options.address, options.port, socket.SOCK_STREAM)] if options.tcp else []
    connected: list[socket.socket] = []
    print("ready", flush=True)
    while options.wait_for and not os.path.exists(options.wait_for):
        time.sleep(0.01)
    late: collections.deque[tuple[float, socket.socket, bytes, object]] = collections.deque()
    while late or not told:
        deaf = options.deaf or (options.deaf_from and os.path.exists(options.deaf_from))
        watched = [] if told else [*([] if deaf else workers), *listeners, *connected]
        for sock in select.select(watched, [], [], 0.005)[0]:
            with contextlib.suppress(BlockingIOError):
                if sock in listeners:
                    greet(sock, options.name)
                    continue
                data, source = sock.recvfrom(2048)
                if data == b"end" and sock in connected:
                    connected.remove(sock)
                    sock.close()
                    continue
                if data and options.connect and sock in workers:
                    sock = bound(options.address, options.port, socket.SOCK_DGRAM)
                    sock.connect(source)
                    connected.append(sock)
                if data:
                    late.append((time.monotonic() + options.delay, sock, data, source))
        if options.talk_to and not told:
            with contextlib.suppress(ConnectionRefusedError):
                workers[0].sendto(b"", (options.talk_to, 9))
        while late and late[0][0] <= time.monotonic():
            _, sock, data, source = late.popleft()
            sock.sendmsg([options.name, b" ", data], (), 0, None if sock in connected else source)


if __name__ == "__main__":
    main()
