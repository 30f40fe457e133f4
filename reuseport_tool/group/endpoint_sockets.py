"""Which sockets an endpoint means."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from reuseport_tool.errors import NotFound
from reuseport_tool.kernel.abi import SocketRecord
from reuseport_tool.models import Endpoint


class EndpointSockets:
    """The sockets of an endpoint, among those of a walk.

    Without an address: all with that local port. With one: what is bound to exactly that address, and
    connections to it. A wildcard address also means the connections that its listeners get: to every local
    address of the family but those that another socket of the walk is bound to by name.
    """

    def __init__(self, endpoint: Endpoint, raws: Sequence[SocketRecord]) -> None:
        self._port = endpoint.port
        self._device = None if endpoint.device is None else _device_index(endpoint.device)
        self._address = _padded(endpoint.address) if endpoint.address is not None else None
        self._spellings = _spellings(endpoint.address) if endpoint.address is not None else set()
        self._family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
        bound = {raw.local for raw in raws if raw.local_port == self._port and self._is_bound(raw)}
        self._others = bound - {bytes(16)}

    def _is_bound(self, raw: SocketRecord) -> bool:
        return raw.family == self._family and raw.remote_port == 0

    def covers(self, raw: SocketRecord) -> bool:
        if raw.local_port != self._port or self._device not in (None, raw.device):
            return False
        if self._address is None:
            return True
        if raw.remote_port == 0 or any(self._address):
            return (raw.family, raw.local) in self._spellings
        return raw.family == self._family and raw.local not in self._others


def _device_index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NotFound(f"no network device {name!r}", hint="'ip link' lists those of this network namespace") from error


def _padded(address: str) -> bytes:
    return ipaddress.ip_address(address).packed.ljust(16, b"\0")


def _spellings(address: str) -> set[tuple[int, bytes]]:
    """An address by family, as an IPv6 socket has it, too, if it is one of IPv4 (::ffff:127.0.0.1)."""
    parsed = ipaddress.ip_address(address)
    plain = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else parsed
    if plain is None:
        return {(socket.AF_INET6, parsed.packed)}
    mapped = ipaddress.IPv6Address(f"::ffff:{plain}")
    return {(socket.AF_INET, _padded(str(plain))), (socket.AF_INET6, mapped.packed)}
