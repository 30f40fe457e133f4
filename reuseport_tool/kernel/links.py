"""rtnetlink through pyroute2: the loopback device and veth pairs of throw-away namespaces."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass

from reuseport_tool.errors import ToolError, Unsupported

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def loopback_up() -> None:
    """Bring `lo` up with two ioctls, which is 50 times quicker than to import a netlink library."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | _IFF_UP))


@dataclass(frozen=True)
class Veth:
    """The two ends of a pair, with the hardware address of the end that has IP addresses."""

    near: str
    far: str
    near_hardware: str


def veth(near: str, far: str) -> Veth:
    """Make a veth pair in the calling thread's namespace, both ends up.

    Raises:
        Unsupported: the kernel has no veth devices.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        try:
            route.link("add", ifname=near, kind="veth", peer={"ifname": far})
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise Unsupported("the kernel has no veth devices", hint="it needs CONFIG_VETH") from error
            raise ToolError(f"making a veth pair failed: {error}") from error
        for name in (near, far):
            route.link("set", index=socket.if_nametoindex(name), state="up")
        links = route.link("get", index=socket.if_nametoindex(near))
        return Veth(near, far, str(links[0].get_attr("IFLA_ADDRESS")))


def give_address(device: str, address: str, prefix: int) -> None:
    """Give a device an address that can be used at once: IPv6 without duplicate address detection."""
    from pyroute2 import IPRoute

    nodad = {"flags": 0x02} if ipaddress.ip_address(address).version == 6 else {}  # IFA_F_NODAD
    with IPRoute() as route:
        route.addr("add", index=socket.if_nametoindex(device), address=address, prefixlen=prefix, **nodad)


def add_neighbour(device: str, address: str, hardware: str) -> None:
    """A permanent neighbour: nobody needs to answer ARP or neighbour solicitations for it."""
    from pyroute2 import IPRoute

    permanent = 0x80  # NUD_PERMANENT
    with IPRoute() as route:
        route.neigh("add", dst=address, lladdr=hardware, ifindex=socket.if_nametoindex(device), state=permanent)
