"""Open and close sockets on one address and port, without end: churn.py listen|connect|udp ADDRESS PORT.

It prints "ready" after the first time around. The number that is open goes up and down, so that those
before and behind a reader's place in the kernel's hash bucket change.
"""

from __future__ import annotations

import random
import socket
import struct
import sys

AT_MOST = 60
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def opened(kind: str, place: tuple[str, int]) -> socket.socket:
    if kind == "connect":
        sock = socket.create_connection(place)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        return sock
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(place)
    if kind == "listen":
        sock.listen()
    return sock


def main() -> None:
    kind, place = sys.argv[1], (sys.argv[2], int(sys.argv[3]))
    choice = random.Random(0)
    held: list[socket.socket] = []
    said = False
    while True:
        if len(held) < AT_MOST and choice.random() < 0.5:
            held.append(opened(kind, place))
        elif held:
            held.pop(choice.randrange(len(held))).close()
            if not said:
                print("ready", flush=True)
                said = True


if __name__ == "__main__":
    main()
