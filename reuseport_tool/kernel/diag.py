"""The bound sockets of the calling thread's network namespace, by sock_diag."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import links, sock_diag
from reuseport_tool.kernel.abi import TcpState
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.record import record

_EXTENSIONS = {Protocol.TCP: sock_diag.EXTENSION_INFO, Protocol.UDP: 0}
_STATES = {Protocol.TCP: 1 << TcpState.LISTEN, Protocol.UDP: 1 << TcpState.CLOSE}


@record
class BoundSocket:
    """A listening TCP socket or a UDP socket.

    `accept_queue` and `backlog` are connections for TCP and None for UDP (idiag_rqueue and
    idiag_wqueue of a listener: inet_diag.c, tcp_diag_get_info()). `mptcp` says that it is the TCP socket inside an
    MPTCP one: the cookie is its own, and the inode is that of the MPTCP socket, which the server holds.
    `receive_queue` are the bytes that a UDP socket has not read yet, and the kernel's own for each datagram, so that
    an empty datagram counts, too (udp_diag_get_info()).
    """

    endpoint: Endpoint
    cookie: int
    inode: int
    uid: int
    accept_queue: int | None
    backlog: int | None
    mptcp: bool
    receive_queue: int = 0


_ACCEPTED = sock_diag.ALL_STATES & ~sum(
    1 << state
    for state in (TcpState.LISTEN, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.TIME_WAIT, TcpState.CLOSE)
)
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address: ::ffff:0:0/96


def bound_sockets(protocol: Protocol, port: int = 0, address: str | None = None) -> list[BoundSocket]:
    """All bound sockets of the protocol, or those on one local port or address, in the order the kernel gives.

    Raises:
        Unsupported: the kernel does not list sockets of the protocol.
        ToolError: sock_diag failed.
    """
    return [
        _bound(protocol, record)
        for record in _dump(protocol, _STATES[protocol], port, _EXTENSIONS[protocol], address)
        if record.port and port in (0, record.port)
    ]


def connected_sockets(port: int) -> list[BoundSocket]:
    """The UDP sockets on a local port that are connected to one peer. Raises as bound_sockets()."""
    return [
        _bound(Protocol.UDP, record)
        for record in _dump(Protocol.UDP, 1 << TcpState.ESTABLISHED, port)
        if record.port == port
    ]


@record
class AcceptedSocket:
    """A TCP connection of a server that a process holds."""

    address: str
    inode: int


def accepted_sockets(port: int) -> list[AcceptedSocket]:
    """The TCP connections with this local port that processes hold: what nobody has accepted yet, has no inode.

    Raises as bound_sockets().
    """
    return [
        AcceptedSocket(address=_address(record), inode=record.inode)
        for record in _dump(Protocol.TCP, _ACCEPTED, port)
        if record.port == port and record.inode
    ]


def give_cookies(protocol: Protocol) -> None:
    """Dump every socket of the protocol, by which each that had no cookie yet gets one. Raises as bound_sockets()."""
    for _ in _dump(protocol, sock_diag.ALL_STATES):
        pass


def _dump(
    protocol: Protocol, states: int, port: int = 0, extensions: int = 0, address: str | None = None
) -> Iterator[sock_diag.Record]:
    try:
        for family, bound_to in _hosts(address):
            request = sock_diag.DiagRequest(
                protocol=protocol,
                family=family,
                states=states,
                source=(port.to_bytes(2, "big"), bytes(16)),
                extensions=extensions,
                bound_to=bound_to,
            )
            yield from sock_diag.dump(request)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Unsupported(
                f"the kernel does not list {protocol} sockets", hint=f"it needs the module {protocol}_diag"
            ) from error
        raise ToolError(f"sock_diag failed: {error}", hint="the kernel needs CONFIG_INET_DIAG") from error


def _hosts(address: str | None) -> list[tuple[int, bytes]]:
    """Family and packed address of what is asked for; both families without an address.

    An IPv4 address and the IPv6 address that maps it are two groups, and whoever names one may mean the other.
    """
    if address is None:
        return [(socket.AF_INET, b""), (socket.AF_INET6, b"")]
    if ":" not in address:
        packed = socket.inet_pton(socket.AF_INET, address)
        return [(socket.AF_INET, packed), (socket.AF_INET6, _MAPPED + packed)]
    packed = socket.inet_pton(socket.AF_INET6, address)
    ipv4 = [(socket.AF_INET, packed[len(_MAPPED) :])] if packed.startswith(_MAPPED) else []
    return [*ipv4, (socket.AF_INET6, packed)]


def _address(record: sock_diag.Record) -> str:
    packed = record.address if record.family == socket.AF_INET6 else record.address[:4]
    return socket.inet_ntop(record.family, packed)


def _bound(protocol: Protocol, record: sock_diag.Record) -> BoundSocket:
    address = _address(record)
    is_tcp = protocol is Protocol.TCP
    return BoundSocket(
        endpoint=Endpoint(
            protocol=protocol,
            address=address,
            port=record.port,
            device=links.device_name(record.device),
            v6only=address == "::" and record.v6only,
        ),
        cookie=record.cookie,
        inode=record.inode,
        uid=record.uid,
        accept_queue=record.receive_queue if is_tcp else None,
        backlog=record.send_queue if is_tcp else None,
        mptcp=record.is_mptcp,
        receive_queue=0 if is_tcp else record.receive_queue,
    )
