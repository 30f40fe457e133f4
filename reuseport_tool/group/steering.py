"""Connections of the tool's own, which the program can be told to steer to the canary generation."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from reuseport_tool.errors import ToolError
from reuseport_tool.group.state import State
from reuseport_tool.models import Endpoint

_PROBE_TIMEOUT_S = 0.3
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@contextlib.contextmanager
def connection(address: str, port: int, timeout_s: float, canary: State | None) -> Iterator[socket.socket]:
    """A TCP connection; with `canary` one that reaches the canary generation of that group, whatever its share.

    Raises:
        OSError: it cannot be made.
        ToolError: it was not steered: somebody between rewrote its source.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        if canary is None:
            client.connect((address, port))
        else:
            _connect_steered(client, address, port, canary)
        yield client


def _connect_steered(client: socket.socket, address: str, port: int, canary: State) -> None:
    source = _source_address(address, port)
    client.bind((source, 0))
    before = canary.counters().steered
    with canary.choice.steered(source.partition("%")[0], client.getsockname()[1]):
        client.connect((address, port))
    if canary.counters().steered == before:
        raise ToolError(
            f"a connection from {source} to {address} port {port} does not reach the program with these addresses",
            hint="name an address that is neither translated nor proxied",
        )


def _source_address(address: str, port: int) -> str:
    """The address from which the kernel connects to another: a connected UDP socket tells without a packet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
        probe_socket.connect((address, port))
        return str(probe_socket.getsockname()[0])


def reachable(group: Endpoint) -> str:
    """An address that leads to the group."""
    return LOOPBACK.get(group.address or "", group.address or "")


def probe(group: Endpoint, canary: State | None = None) -> None:
    """Leave a connection to be accepted, closed at once: a server that waits for its request sees the end.

    Where it cannot be made (no loopback, a firewall) there is none.
    """
    with contextlib.suppress(OSError), connection(reachable(group), group.port, _PROBE_TIMEOUT_S, canary):
        pass
