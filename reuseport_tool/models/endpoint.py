"""What a group is bound to, as typed and as printed."""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass

from reuseport_tool.errors import UsageError


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A protocol, a local address, a port and perhaps a device."""

    protocol: Protocol
    """Of the sockets."""
    address: str | None
    """The local address. None means every address, which covers groups but is never one."""
    port: int
    """The local port. 0 means every port, which covers groups but is never one."""
    device: str | None = None
    """The device that the sockets are bound to, by its name."""

    def __str__(self) -> str:
        if self.address is None:
            return f"{self.protocol}://*:{self.port}"
        host = f"{self.address}%{self.device}" if self.device else self.address
        return f"{self.protocol}://[{host}]:{self.port}" if self.is_ipv6 else f"{self.protocol}://{host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return self.address is not None and ":" in self.address

    def covers(self, group: Endpoint) -> bool:
        """Whether a group is one of those that this endpoint, as typed, means."""
        return (
            self.protocol is group.protocol
            and self.port in (0, group.port)
            and self.address in (None, group.address)
            and self.device in (None, group.device)
        )


_ENDPOINT = re.compile(
    r"(?:(?P<protocol>[a-zA-Z]+)://)?"
    r"(?:(?:\[(?P<v6>[^\]%]*)(?:%(?P<v6dev>[^\]]+))?\]|(?P<v4>[^\[\]:%]*)(?:%(?P<v4dev>[^:]+))?):)?"
    r"(?P<port>[^:\[\]]+)"
)


def parse_endpoint(text: str) -> Endpoint:
    """Read `PORT`, `ADDR:PORT` or `[ADDR6]:PORT`, with an optional `tcp://` or `udp://` in front.

    Raises:
        UsageError: what is wrong with the text, and an example of what is right.
    """
    match = _ENDPOINT.fullmatch(text.strip())
    hint = "write PORT, ADDR:PORT or [ADDR6]:PORT, for example 8080, 10.0.0.1:80 or udp://[::]:53"
    if match is None:
        raise UsageError(f"not an endpoint: {text!r}", hint=hint)
    protocol = match["protocol"] or "tcp"
    if protocol.lower() not in tuple(Protocol):
        raise UsageError(f"unknown protocol {protocol!r} in {text!r}", hint="the protocol is tcp or udp")
    address = match["v6"] if match["v6"] is not None else match["v4"]
    if address == "*":
        address = None
    version = 6 if match["v6"] is not None else 4
    return Endpoint(
        protocol=Protocol(protocol.lower()),
        address=None if address is None else _parse_address(address, text, hint, version=version),
        port=_parse_port(match["port"], text),
        device=match["v6dev"] or match["v4dev"],
    )


def _parse_address(address: str, text: str, hint: str, version: int) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(f"not an IP address: {address!r} in {text!r}", hint=hint) from None
    if parsed.version != version:
        raise UsageError(f"an IPv{parsed.version} address in the place of IPv{version}: {text!r}", hint=hint)
    return str(parsed)


def _parse_port(port: str, text: str) -> int:
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError(f"not a port: {port!r} in {text!r}", hint="a port is a number from 1 to 65535")
    return int(port)
