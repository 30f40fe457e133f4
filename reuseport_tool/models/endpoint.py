"""What a group is bound to, as typed and as printed."""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
from collections.abc import Iterable

from reuseport_tool.errors import UsageError
from reuseport_tool.record import record


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"


@record
class Endpoint:
    """A protocol, a local address, a port, and what else tells groups apart.

    An address is spelled as inet_ntop(3) and ss do. The kernel sets IPV6_V6ONLY on every IPv6 address but `[::]` and
    the mapped ones (net/ipv6/af_inet6.c, inet6_bind()), so that it names no group there.
    """

    protocol: Protocol
    """Of the sockets."""
    address: str | None
    """The local address. None means every address, which covers groups but is never one."""
    port: int
    """The local port. 0 means every port, which covers groups but is never one."""
    device: str | None = None
    """The device that the sockets are bound to, by its name."""

    v6only: bool = False
    """Whether it is the group of `[::]` with IPV6_V6ONLY, and not the one that serves IPv4, too."""

    def __str__(self) -> str:
        host = "*" if self.address is None else self.address
        if self.device:
            host = f"{host}%{self.device}"
        if self.is_ipv6:
            host = f"[{host}]"
        return f"{self.protocol}://{host}:{self.port}" + (_V6ONLY if self.v6only else "")

    @property
    def is_ipv6(self) -> bool:
        return self.address is not None and ":" in self.address

    @property
    def is_shared(self) -> bool:
        """Whether the kernel gives each datagram to every socket that is bound there: UDP multicast and broadcast."""
        if self.protocol is not Protocol.UDP or self.address is None:
            return False
        return self.address == _BROADCAST or ipaddress.ip_address(self.address).is_multicast

    def covers(self, group: Endpoint) -> bool:
        """Whether a group is one of those that this endpoint, as typed, can mean."""
        return (
            self.protocol is group.protocol
            and self.port in (0, group.port)
            and (self.address is None or unmapped(self.address) == unmapped(group.address))
            and self.device in (None, group.device)
            and (group.v6only or not self.v6only)
        )

    def among(self, groups: Iterable[Endpoint]) -> list[Endpoint]:
        """The groups that this endpoint, as typed, means: the one with exactly this name, or else all it covers."""
        covered = [group for group in groups if self.covers(group)]
        return [self] if self in covered else covered


@record
class Identity:
    """All that the kernel compares before a socket joins a group (inet_reuseport_add_sock() in the kernel)."""

    endpoint: Endpoint
    """Protocol, address, port, device and IPV6_V6ONLY."""
    uid: int
    """The owner of the socket."""
    netns: int
    """The inode of the network namespace."""

    def __str__(self) -> str:
        return f"{self.endpoint} of uid {self.uid} in net:[{self.netns}]"


_V6ONLY = ",v6only"
_BROADCAST = "255.255.255.255"
_ENDPOINT = re.compile(
    r"(?:(?P<protocol>[a-zA-Z]+)://)?"
    r"(?:(?:\[(?P<v6>[^\]%]*)(?:%(?P<v6dev>[^\]]+))?\]|(?P<v4>[^\[\]:%]*)(?:%(?P<v4dev>[^:]+))?|(?P<netstat>::)):)?"
    r"(?P<port>[^:\[\],]+)"
    rf"(?P<v6only>{_V6ONLY})?"
)


def parse_endpoint(text: str) -> Endpoint:
    """Read `PORT`, `ADDR:PORT` or `[ADDR6]:PORT`, with an optional `tcp://` or `udp://` in front.

    `*` or nothing as the address means every address, `:::PORT` is netstat's spelling of `[::]:PORT`, and
    `[::]:PORT,v6only` only the group with IPV6_V6ONLY.

    Raises:
        UsageError: what is wrong with the text, and an example of what is right.
    """
    match = _ENDPOINT.fullmatch(text.strip())
    hint = "write PORT, :PORT, ADDR:PORT or [ADDR6]:PORT, for example 8080, 10.0.0.1:80 or udp://[::]:53"
    if match is None:
        raise UsageError(f"not an endpoint: {text!r}", hint=hint)
    protocol = match["protocol"] or "tcp"
    if protocol.lower() not in tuple(Protocol):
        raise UsageError(f"unknown protocol {protocol!r} in {text!r}", hint="the protocol is tcp or udp")
    v6 = match["v6"] if match["v6"] is not None else match["netstat"]
    if v6 is not None:
        address: str | None = _parse_address(v6, text, hint, version=6)
    else:
        address = None if match["v4"] in (None, "", "*") else _parse_address(match["v4"], text, hint, version=4)
    if match["v6only"] and address != "::":
        raise UsageError(f"{_V6ONLY} belongs to [::] only: {text!r}", hint=hint)
    return Endpoint(
        protocol=Protocol(protocol.lower()),
        address=address,
        port=_parse_port(match["port"], text),
        device=match["v6dev"] or match["v4dev"],
        v6only=bool(match["v6only"]),
    )


def _parse_address(address: str, text: str, hint: str, version: int) -> str:
    try:
        spelled = canonical_address(address)
    except ValueError:
        raise UsageError(f"not an IP address: {address!r} in {text!r}", hint=hint) from None
    if (6 if ":" in spelled else 4) != version:
        raise UsageError(f"not an IPv{version} address: {address!r} in {text!r}", hint=hint)
    return spelled


def canonical_address(text: str) -> str:
    """An address as inet_ntop(3) spells it, which is how the kernel's tools show it. Raises ValueError."""
    parsed = ipaddress.ip_address(text)
    return socket.inet_ntop(socket.AF_INET6 if parsed.version == 6 else socket.AF_INET, parsed.packed)


def unmapped(address: str | None) -> str | None:
    """127.0.0.1 for ::ffff:127.0.0.1: the same place for a client, two groups for the kernel."""
    head, mapped, rest = (address or "").partition("::ffff:")
    return rest if mapped and not head and "." in rest else address


def _parse_port(port: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise UsageError(f"not a port: {port!r} in {text!r}", hint="a port is a number from 1 to 65535")
    return int(port)
