"""sock_diag through pyroute2: the bound sockets of the calling thread's network namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLM_F_MATCH, NLM_F_REQUEST, NLM_F_ROOT
from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, DiagSocket, inet_diag_req
from pyroute2.netlink.exceptions import NetlinkError

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.models import Endpoint, Protocol

_LISTEN, _CLOSE = 10, 7  # an unconnected UDP socket is in the state CLOSE
_DUMP = NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_IPPROTO = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_ALL_STATES = 0xFFFFFFFF
_STATES = {Protocol.TCP: 1 << _LISTEN, Protocol.UDP: 1 << _CLOSE}


@dataclass(frozen=True, kw_only=True)
class BoundSocket:
    """A listening TCP socket or an unconnected UDP socket.

    `accept_queue` and `backlog` are connections for TCP and None for UDP (idiag_rqueue and
    idiag_wqueue of a listener: inet_diag.c, tcp_diag_get_info()).
    """

    endpoint: Endpoint
    cookie: int
    inode: int
    uid: int
    accept_queue: int | None
    backlog: int | None


def bound_sockets(protocol: Protocol, port: int = 0) -> list[BoundSocket]:
    """All bound sockets of the protocol, or those on one local port, in the order the kernel gives."""
    try:
        with DiagSocket() as diag:
            return [
                _socket(message, protocol)
                for family in (socket.AF_INET, socket.AF_INET6)
                for message in _dump(diag, family, protocol, _STATES[protocol], port)
                if message["idiag_sport"] and (not port or message["idiag_sport"] == port)
            ]
    except KeyError as error:  # pyroute2 hands the kernel's error on as if it were a record
        raise Unsupported(
            f"the kernel does not list {protocol} sockets", hint=f"it needs the module {protocol}_diag"
        ) from error
    except (NetlinkError, OSError) as error:
        raise ToolError(f"sock_diag failed: {error}", hint="the kernel needs CONFIG_INET_DIAG") from error


def give_cookies(protocol: Protocol) -> None:
    """Dump every socket of the protocol, by which each that had no cookie yet gets one."""
    try:
        with DiagSocket() as diag:
            for family in (socket.AF_INET, socket.AF_INET6):
                for _ in _dump(diag, family, protocol, _ALL_STATES):
                    pass
    except (NetlinkError, OSError) as error:
        raise ToolError(f"sock_diag failed: {error}", hint="the kernel needs CONFIG_INET_DIAG") from error


def _dump(diag: DiagSocket, family: int, protocol: Protocol, states: int, port: int = 0) -> Iterable[dict[str, Any]]:
    """The records of a dump. pyroute2 before 0.8 has no filter by port in get_sock_stats()."""
    request = inet_diag_req()
    request["sdiag_family"], request["sdiag_protocol"] = family, _IPPROTO[protocol]
    request["idiag_states"], request["idiag_sport"] = states, port
    records: Iterable[dict[str, Any]] = diag.nlm_request(request, SOCK_DIAG_BY_FAMILY, _DUMP)
    return records


def _socket(message: dict[str, int], protocol: Protocol) -> BoundSocket:
    is_tcp = protocol is Protocol.TCP
    return BoundSocket(
        endpoint=Endpoint(
            protocol=protocol,
            address=str(message["idiag_src"]),
            port=message["idiag_sport"],
            device=_device(message["idiag_if"]),
        ),
        cookie=message["idiag_cookie"],
        inode=message["idiag_inode"],
        uid=message["idiag_uid"],
        accept_queue=message["idiag_rqueue"] if is_tcp else None,
        backlog=message["idiag_wqueue"] if is_tcp else None,
    )


def _device(index: int) -> str | None:
    if not index:
        return None
    try:
        return socket.if_indextoname(index)
    except OSError:  # the device went away
        return f"if{index}"
