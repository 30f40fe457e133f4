"""Network devices: the loopback device and veth pairs of throw-away namespaces."""

from __future__ import annotations

import errno
import fcntl
import functools
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import rtnetlink
from reuseport_tool.waiting import wait_until

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x8914, 0x1, 0x40
_IFREQ_FLAGS = "16sH14x"  # struct ifreq with ifr_flags (netdevice(7))
_DEADLINE_S, _POLL_S = 120.0, 0.005


def loopback_up() -> None:
    """Bring `lo` up with two ioctls, which is 50 times quicker than to import a netlink library."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack(_IFREQ_FLAGS, b"lo", _flags(control, "lo") | _IFF_UP))


def device_name(index: int) -> str | None:
    """The name of a network device, None for index 0."""
    if not index:
        return None
    try:
        return socket.if_indextoname(index)
    except OSError:  # the device went away
        return f"if{index}"


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
    from pyroute2.netlink.exceptions import NetlinkError

    with rtnetlink.opened() as route:
        try:
            route.link("add", ifname=near, kind="veth", peer={"ifname": far})
        except NetlinkError as error:
            if error.code == errno.EOPNOTSUPP:
                raise Unsupported("the kernel has no veth devices", hint="it needs CONFIG_VETH") from error
            raise ToolError(f"making a veth pair failed: {error}") from error
        for name in (near, far):
            route.link("set", index=socket.if_nametoindex(name), state="up")
        for name in (near, far):
            _wait(functools.partial(_runs, name), f"{name} is up")
        links = route.link("get", index=socket.if_nametoindex(near))
        return Veth(near, far, str(links[0].get_attr("IFLA_ADDRESS")))


def give_address(device: str, address: str, prefix: int) -> None:
    """Give a device an address that can be used at once: IPv6 without duplicate address detection.

    An IPv6 address is there, and can be bound, before its local route is: a kernel worker inserts that
    (net/ipv6/addrconf.c, addrconf_dad_work()). Until then packets to the address are dropped.
    """
    ip = ipaddress.ip_address(address)
    nodad = {"flags": 0x02} if ip.version == 6 else {}  # IFA_F_NODAD
    with rtnetlink.opened() as route:
        route.addr("add", index=socket.if_nametoindex(device), address=address, prefixlen=prefix, **nodad)
    if ip.version == 6:
        _wait(lambda: _has_local_route(ip.packed), f"{address} has a local route")


def address_of(device: str, version: int) -> str | None:
    """The first IPv4 or IPv6 address of a device, None where it has none."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with rtnetlink.opened() as route:
        found = route.get_addr(index=socket.if_nametoindex(device), family=family)
    return str(found[0].get_attr("IFA_ADDRESS")) if found else None


def add_neighbour(device: str, address: str, hardware: str) -> None:
    """A permanent neighbour: nobody needs to answer ARP or neighbour solicitations for it."""
    permanent = 0x80  # NUD_PERMANENT
    with rtnetlink.opened() as route:
        route.neigh("add", dst=address, lladdr=hardware, ifindex=socket.if_nametoindex(device), state=permanent)


def _runs(device: str) -> bool:
    """IFF_RUNNING: it is up and has its carrier."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        return bool(_flags(control, device) & _IFF_RUNNING)


def _flags(control: socket.socket, device: str) -> int:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack(_IFREQ_FLAGS, device.encode(), 0))
    return int(struct.unpack(_IFREQ_FLAGS, answer)[1])


def _has_local_route(address: bytes) -> bool:
    with open("/proc/thread-self/net/ipv6_route") as routes:
        return any(line.split()[:2] == [address.hex(), "80"] for line in routes)


def _wait(condition: Callable[[], bool], what: str) -> None:
    """By cheap questions: under emulation many threads that dump by netlink keep the workers from running."""
    if not wait_until(condition, _DEADLINE_S, _POLL_S):
        raise ToolError(f"the kernel took more than {_DEADLINE_S:.0f} s until {what}")
