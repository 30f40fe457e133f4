"""rtnetlink through pyroute2: the loopback device and veth pairs of throw-away namespaces."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Any

from reuseport_tool.errors import ToolError, Unsupported

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_RT_TABLE_LOCAL = 255
_DEADLINE_S, _POLL_S = 20.0, 0.005


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
    """Make a veth pair in the calling thread's namespace, both ends ready to send.

    The end that comes up first has no carrier yet. Once the other one is up, a kernel worker notices,
    and until then the first drops what it is to send (net/core/link_watch.c, dev_activate()).

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
        for name in (near, far):
            _wait(route, route.link, f"{name} is up", ifname=name, operstate="UP")
        links = route.link("get", index=socket.if_nametoindex(near))
        return Veth(near, far, str(links[0].get_attr("IFLA_ADDRESS")))


def give_address(device: str, address: str, prefix: int) -> None:
    """Give a device an address that can be used at once: IPv6 without duplicate address detection.

    An IPv6 address is there, and can be bound, before its local route is: a kernel worker inserts that
    (net/ipv6/addrconf.c, addrconf_dad_work()). Until then packets to the address are dropped.
    """
    from pyroute2 import IPRoute

    ip = ipaddress.ip_address(address)
    family, nodad = (socket.AF_INET6, {"flags": 0x02}) if ip.version == 6 else (socket.AF_INET, {})  # IFA_F_NODAD
    with IPRoute() as route:
        route.addr("add", index=socket.if_nametoindex(device), address=address, prefixlen=prefix, **nodad)
        local = {"table": _RT_TABLE_LOCAL, "dst": address, "dst_len": ip.max_prefixlen}
        _wait(route, route.route, f"{address} has a local route", family=family, **local)


def add_neighbour(device: str, address: str, hardware: str) -> None:
    """A permanent neighbour: nobody needs to answer ARP or neighbour solicitations for it."""
    from pyroute2 import IPRoute

    permanent = 0x80  # NUD_PERMANENT
    with IPRoute() as route:
        route.neigh("add", dst=address, lladdr=hardware, ifindex=socket.if_nametoindex(device), state=permanent)


def _wait(route: Any, method: Any, what: str, **wanted: Any) -> None:
    """Wait until a dump has something that matches. Raises ToolError."""
    try:
        route.poll(method, "dump", timeout=_DEADLINE_S, interval=_POLL_S, **wanted)
    except TimeoutError:
        raise ToolError(f"the kernel took more than {_DEADLINE_S:.0f} s until {what}") from None
