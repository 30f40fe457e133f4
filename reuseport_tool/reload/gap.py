"""Datagrams that come while no server runs: they wait in copies of the old sockets, and are sent once more."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.group import discover, steering
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel import links, raw_udp, sockets
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.kernel.raw_udp import Datagram, RawUdp
from reuseport_tool.kernel.udp_beside import bound_beside
from reuseport_tool.models import Endpoint
from reuseport_tool.waiting import readable

_AT_ONCE, _BYTES_AT_ONCE = 50, 32 << 10  # a receive buffer of the default size holds 277 small datagrams
_TRIED_S, _TRIED_BYTES = 2.0, 1400
_SOURCES = {4: ipaddress.ip_address("192.0.2.1"), 6: ipaddress.ip_address("2001:db8::1")}  # of documentation
_PORT = 9


class Gap(Closing):
    """Works on the copies of listeners, in the calling thread's network namespace. A context manager.

    Args:
        copy: the descriptor of a copy, None where there is none.
        adopt: takes a socket of our own, by cookie and descriptor, which then is one of the copies.
    """

    def __init__(self, copy: Callable[[int], int | None], adopt: Callable[[int, int], None]) -> None:
        self._copy = copy
        self._adopt = adopt
        self._owned = ExitStack()
        self._raw: dict[str | None, RawUdp] = {}

    def close(self) -> None:
        """Close the raw sockets."""
        self._owned.close()

    def check(self, group: Endpoint) -> None:
        """Raises Unsupported, MissingCapability where a datagram cannot be sent to a group again. It tries.

        A socket of the tool's own at the group's address gets one from an address that is not of this machine.
        """
        with _own_socket(group) as sock:
            target, port, *more = sock.getsockname()
            destination = raw_udp.address(target.partition("%")[0])
            tried = Datagram(
                source=_SOURCES[destination.version],
                source_port=_PORT,
                destination=destination,
                port=port,
                scope=more[1] if more else 0,
                payload=bytes(_TRIED_BYTES),
            )
            if self._sender(group).send(tried) and readable(sock, _TRIED_S):
                return
        raise Unsupported(
            f"what {group} gets while no server runs cannot be given to the new one: a datagram of another source "
            "does not arrive from a raw socket",
            hint="a packet filter may drop it; let the new server start beside the old one: -- COMMAND…",
        )

    def _sender(self, group: Endpoint) -> RawUdp:
        if group.device not in self._raw:
            self._raw[group.device] = self._owned.enter_context(RawUdp(group.device))
        return self._raw[group.device]

    def park(self, member: Member) -> Member:
        """A socket of our own in the group of a listener; it is held as the copies are. Raises ToolError."""
        try:
            with self._descriptor(member) as fd:
                made = bound_beside(fd, member.socket.uid)
        except OSError as error:
            raise ToolError(f"no socket of the tool can join {member.socket.endpoint}: {error.strerror}") from error
        cookie, fd = sockets.cookie(made.fileno()), made.detach()
        self._adopt(cookie, fd)
        bound = next(each for each in discover.sockets_in(member.socket.endpoint) if each.cookie == cookie)
        return Member(bound, (Holder(os.getpid(), fd),))

    def buffers(self, members: Sequence[Member]) -> tuple[int, ...]:
        """The receive buffer of each, bytes."""
        found = []
        for member in members:
            with self._descriptor(member) as fd:
                found.append(raw_udp.receive_buffer(fd))
        return tuple(found)

    def resize(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        """Set them."""
        for member, size in zip(members, sizes, strict=True):
            with self._descriptor(member) as fd:
                raw_udp.set_receive_buffer(fd, size)

    @contextmanager
    def _descriptor(self, member: Member) -> Iterator[int]:
        fd = self._copy(member.cookie)
        if fd is not None:
            yield fd
            return
        fd = discover.take(member)
        try:
            yield fd
        finally:
            os.close(fd)

    def give(self, group: Endpoint, cookie: int) -> tuple[int, int]:
        """Take some datagrams out of one of the copies, and send them to the group again.

        Returns how many were taken, and how many of them were sent.
        """
        fd = self._copy(cookie)
        if fd is None:
            return 0, 0
        sender = self._sender(group)  # without one they stay where they are
        taken = raw_udp.take(fd, _AT_ONCE, _BYTES_AT_ONCE)
        return len(taken), sum([sender.send(each) for each in taken])


@contextmanager
def _own_socket(group: Endpoint) -> Iterator[socket.socket]:
    """A socket at an address that the group gets datagrams at, on a port of its own."""
    target = steering.reachable(group)
    is_ipv6 = ":" in target
    if group.device is not None and target != group.address:
        target = links.address_of(group.device, 6 if is_ipv6 else 4) or target
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            scope = 0
            if group.device is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, group.device.encode())
                scope = socket.if_nametoindex(group.device)
            sock.bind((target, 0, 0, scope) if is_ipv6 else (target, 0))
        except OSError as error:
            raise Unsupported(
                f"no socket can be bound at {target}: {error.strerror}",
                hint="'ip address' lists the addresses of this network namespace",
            ) from error
        yield sock
