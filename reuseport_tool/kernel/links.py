"""rtnetlink through pyroute2: the loopback device and veth pairs of throw-away namespaces."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def loopback_up() -> None:
    """Bring `lo` up with two ioctls, which is 50 times quicker than to import a netlink library."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | _IFF_UP))


def add_veth(name: str, peer: str) -> None:
    """A pair of veth devices in the calling thread's namespace. Raises OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            route.link("add", ifname=name, kind="veth", peer=peer)
    except NetlinkError as error:
        raise OSError(error.code, f"add a veth pair: {os.strerror(error.code)}") from error
