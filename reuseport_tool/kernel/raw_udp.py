"""Datagrams that wait in a socket, read with both of their addresses and sent to this machine once more."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability
from reuseport_tool.kernel import capabilities, rtnetlink
from reuseport_tool.kernel.sockets import borrowed
from reuseport_tool.record import record

# include/uapi/linux/in.h, in6.h, udp.h, and asm-generic/socket.h
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_SOL_UDP, _UDP_GRO = 17, 104
_SO_RCVBUFFORCE = 33

_PKTINFO = struct.Struct("=i4s4s")  # interface, local address, destination in the header
_PKTINFO6 = struct.Struct("=16si")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_VERSION4, _VERSION6, _HOPS = 0x45, 6 << 28, 64
_RTN_LOCAL = 2
_LONGEST = 65535


@record
class Datagram:
    """One datagram. `scope` is the interface of a link-local source, 0 for others."""

    source: ipaddress.IPv4Address | ipaddress.IPv6Address
    source_port: int
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    scope: int
    payload: bytes


def receive_buffer(fd: int) -> int:
    """The bytes that a socket holds for its reader, as the kernel counts them."""
    with borrowed(fd) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def set_receive_buffer(fd: int, size: int) -> None:
    """The same for sizes that receive_buffer() gives; without CAP_NET_ADMIN at most net.core.rmem_max, doubled."""
    with borrowed(fd) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size // 2)  # the kernel doubles it
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)


def take(fd: int, most: int, most_bytes: int) -> list[Datagram]:
    """Take waiting datagrams out of a socket, until there are so many of them, or of their bytes.

    The kernel looks for the destination when it is asked, in the datagram's own header: those that came before count.
    """
    found: list[Datagram] = []
    with borrowed(fd) as sock:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        port = sock.getsockname()[1]
        while len(found) < most and sum(len(each.payload) for each in found) < most_bytes:
            try:
                payload, notes, _, source = sock.recvmsg(_LONGEST, 256, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError:  # an answer of the server was refused
                continue
            found += _datagrams(payload, notes, source, port)
    return found


def _datagrams(
    payload: bytes, notes: list[tuple[int, int, bytes]], source: tuple[str, int, int, int], port: int
) -> Iterator[Datagram]:
    """Several where the kernel has merged them (UDP_GRO)."""
    size, destination = len(payload), b""
    for level, kind, data in notes:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            destination = _PKTINFO.unpack(data)[2]
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            destination = _PKTINFO6.unpack(data)[0]
        elif (level, kind) == (_SOL_UDP, _UDP_GRO):
            size = int.from_bytes(data[:4], "little")
    for begin in range(0, max(len(payload), 1), max(size, 1)):
        yield Datagram(
            source=address(source[0].partition("%")[0]),
            source_port=source[1],
            destination=address(destination),
            port=port,
            scope=source[3] if len(source) > 3 else 0,
            payload=payload[begin : begin + size],
        )


def address(text: str | bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address also for the IPv6 address that maps it."""
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


class RawUdp(Closing):
    """Sends datagrams with the addresses that they had. A context manager.

    The kernel delivers what is sent to an address of its own through the loopback device, and the route that it found
    for sending stays with the packet, so that no filter by reverse path looks at the source (ip_rcv_finish_core()).
    Nothing leaves the machine: what is not for one of its addresses is not sent.

    Args:
        device: that the sockets of the group are bound to; they see only what seems to come from it.

    Raises:
        MissingCapability: CAP_NET_RAW is needed.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = socket.if_nametoindex(device) if device is not None else 0
        self._local: dict[tuple[object, int], bool] = {}
        self._sockets: dict[int, socket.socket] = {}
        with ExitStack() as stack:
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                self._sockets[version] = stack.enter_context(opened(family))
                if device is not None:
                    self._sockets[version].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            self._owned = stack.pop_all()

    def close(self) -> None:
        """Close the sockets."""
        self._owned.close()

    def send(self, datagram: Datagram) -> bool:
        """Whether the kernel took it."""
        is_ipv6 = datagram.destination.version == 6
        target = (str(datagram.destination), 0, *([0, datagram.scope] if is_ipv6 else []))
        try:
            if not self._is_local(datagram):
                return False
            self._sockets[datagram.destination.version].sendto(_packet(datagram), target)
        except OSError:
            return False
        return True

    def _is_local(self, datagram: Datagram) -> bool:
        scope = datagram.scope if datagram.destination.is_link_local else 0
        asked = datagram.destination, self._device or scope
        if asked not in self._local:
            self._local[asked] = _is_local(*asked)
        return self._local[asked]


def opened(family: int) -> socket.socket:
    """A raw socket for packets that have their IP headers. Raises MissingCapability."""
    try:
        return socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError as error:
        raise MissingCapability("not permitted to open a raw socket", hint=capabilities.hint("CAP_NET_RAW")) from error


def _is_local(destination: ipaddress.IPv4Address | ipaddress.IPv6Address, device: int) -> bool:
    """Whether the kernel delivers to this address here, and to one socket only; with a device also if sent from it."""
    from pyroute2.netlink.exceptions import NetlinkError

    with rtnetlink.opened() as route:
        try:
            found = route.route("get", dst=str(destination), **({"oif": device} if device else {}))
        except NetlinkError:
            return False
    return bool(found) and found[0]["type"] == _RTN_LOCAL


def _packet(datagram: Datagram) -> bytes:
    source, destination = datagram.source.packed, datagram.destination.packed
    length = _UDP.size + len(datagram.payload)
    udp = _UDP.pack(datagram.source_port, datagram.port, length & 0xFFFF, 0) + datagram.payload
    if datagram.destination.version == 4:
        # Without a checksum, which IPv4 allows. The kernel fills in the length, the number and the checksum of its own.
        return _IPV4.pack(_VERSION4, 0, 0, 0, 0, _HOPS, socket.IPPROTO_UDP, 0, source, destination) + udp
    pseudo = source + destination + struct.pack("!IBBBB", length, 0, 0, 0, socket.IPPROTO_UDP)
    checksum = _checksum(pseudo + udp).to_bytes(2, "big")
    header = _IPV6.pack(_VERSION6, length & 0xFFFF, socket.IPPROTO_UDP, _HOPS, source, destination)
    return header + udp[:6] + checksum + udp[8:]


def _checksum(data: bytes) -> int:
    """RFC 1071; never 0, which means that there is none."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF
