"""A small server that can misbehave in every way a deploy does.

It answers each connection with its name, and prints "ready" when it listens.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import struct
import sys

TCP_SAVE_SYN = 27


def main() -> None:
    options = arguments()
    if options.exit is not None:
        sys.exit(options.exit)
    if options.uid:
        os.setuid(options.uid)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        listeners = [] if options.mute else [listen(options) for _ in range(options.listeners)]
    except OSError as error:
        sys.exit(f"{options.name}: {error.strerror}")
    print("ready", flush=True)
    if options.deaf or not listeners:
        while True:
            signal.pause()
    if options.live:
        signal.alarm(options.live)
    if options.graceful:
        serve_gracefully(listeners)
    else:
        serve(listeners, answer(options), options.reset)


def answer(options: argparse.Namespace) -> bytes:
    if options.http:
        return f"HTTP/1.0 {options.http} Status\r\nContent-Length: 0\r\n\r\n".encode()
    return bytes(options.name, "ascii")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("name")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--listeners", type=int, default=1)
    parser.add_argument("--backlog", type=int, default=1024)
    parser.add_argument("--uid", type=int, help="give up root first")
    parser.add_argument("--exit", type=int, metavar="CODE", help="do nothing but exit")
    parser.add_argument("--deaf", action="store_true", help="listen and never accept")
    parser.add_argument("--mute", action="store_true", help="run and never listen")
    parser.add_argument("--save-syn", action="store_true")
    parser.add_argument("--no-reuseport", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--udp", action="store_true")
    parser.add_argument("--http", metavar="STATUS", help="answer in HTTP")
    parser.add_argument("--live", type=int, metavar="SECONDS", help="die after so long")
    parser.add_argument("--graceful", action="store_true", help="echo; at SIGTERM see the connections to their end")
    parser.add_argument("--reset", action="store_true", help="reset every connection")
    return parser.parse_args()


def listen(options: argparse.Namespace) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if options.udp else socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if not options.no_reuseport:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if options.save_syn:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    sock.bind((options.address, options.port))
    if not options.udp:
        sock.listen(options.backlog)
    return sock


def serve(listeners: list[socket.socket], name: bytes, reset: bool) -> None:
    """Sleep in epoll_wait; a connection is answered and closed, or reset."""
    epoll = select.epoll()
    by_fd = {listener.fileno(): listener for listener in listeners}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            client, _ = by_fd[fd].accept()
            try:
                client.recv(1024)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    client.sendall(name)
            except OSError:
                pass
            client.close()


def serve_gracefully(listeners: list[socket.socket]) -> None:
    """Echo. SIGTERM closes the listeners; the process ends with its last connection."""
    stop_reader, stop_writer = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stop_writer.send(b"x"))
    epoll = select.epoll()
    open_sockets = {sock.fileno(): sock for sock in [*listeners, stop_reader]}
    for fd in open_sockets:
        epoll.register(fd, select.EPOLLIN)

    def forget(sock: socket.socket) -> None:
        epoll.unregister(sock)
        del open_sockets[sock.fileno()]
        sock.close()

    while open_sockets:
        for fd, _ in epoll.poll():
            sock = open_sockets.get(fd)
            if sock is stop_reader:
                for each in [*listeners, stop_reader]:
                    forget(each)
            elif sock in listeners:
                client, _ = sock.accept()
                open_sockets[client.fileno()] = client
                epoll.register(client, select.EPOLLIN)
            elif sock is not None and not echo(sock):
                forget(sock)


def echo(client: socket.socket) -> bool:
    """Whether the connection goes on."""
    try:
        data = client.recv(1024)
        client.sendall(data)
    except OSError:
        return False
    return bool(data)


if __name__ == "__main__":
    main()
