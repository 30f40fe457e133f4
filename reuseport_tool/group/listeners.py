"""The listeners of several groups: who has them, what the kernel keeps of them, copies of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Closed, ToolError
from reuseport_tool.group import discover
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel import processes, sockets
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.iterator import MemberInfo, Snapshot, TcpListeners, UdpInfo
from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.models import Endpoint, Protocol

_BY_PORT = 4  # more groups than that are found sooner by one look at all of their port


class Listeners(Closing):
    """Looks at the calling thread's network namespace. A context manager; closing it lets go of copies."""

    def __init__(self, iterator: TcpListeners | None, udp_sockets: Callable[[], Mapping[int, UdpInfo]]) -> None:
        self._iterator = iterator
        self._udp_sockets = udp_sockets
        self._copies: dict[int, int] = {}

    def close(self) -> None:
        """As let_go()."""
        self.let_go()

    def everything(self, protocol: Protocol) -> Mapping[Endpoint, tuple[Member, ...]]:
        """Every bound socket, with the processes that hold it, by one walk over /proc."""
        return {found.endpoint: found.members for found in discover.with_holders(discover.all_groups(protocol))}

    def on(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        """The sockets of these groups, without their holders."""
        wanted = list(groups)
        if len(wanted) > _BY_PORT:
            return {group: entries for group, entries in self.on_ports(wanted).items() if group in wanted}
        return {group: tuple(discover.sockets_in(group)) for group in wanted}

    def on_ports(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        """The sockets of these groups and of all others on their ports, without their holders."""
        found: dict[Endpoint, tuple[BoundSocket, ...]] = {}
        for protocol, port in sorted({(group.protocol, group.port) for group in groups}):
            present = discover.sockets_of(Endpoint(protocol=protocol, address=None, port=port))
            found.update({group: tuple(entries) for group, entries in present.items()})
        return found

    def with_holders(self, entries: Collection[BoundSocket], among: Collection[int] | None) -> tuple[Member, ...]:
        """The same with the processes that hold them, of all processes or of these."""
        held = processes.holders([entry.inode for entry in entries], among)
        return tuple(Member(entry, tuple(held[entry.inode])) for entry in entries)

    def require_visible(self, members: Sequence[Member]) -> None:
        """Raises MissingCapability where a listener may have a holder that we are not permitted to see."""
        discover.require_visible(members)

    def kernel(self, wanted: Collection[int] | None = None) -> Snapshot | None:
        """What the iterator tells; None where the kernel has none."""
        return self._iterator.read(wanted) if self._iterator else None

    def is_reuseport(self, member: Member) -> bool:
        """Whether it has SO_REUSEPORT; where that cannot be seen, a TCP listener is said to and a UDP socket not."""
        is_tcp = member.socket.endpoint.protocol is Protocol.TCP
        infos: Mapping[int, MemberInfo] = {}
        if not is_tcp:
            infos = self._udp_sockets()
        elif self._iterator is not None:
            infos = self._iterator.listeners([member.cookie])
        if member.cookie in infos:
            return bool(infos[member.cookie].group)
        with contextlib.suppress(ToolError), discover.descriptors([member]) as fds:
            return sockets.is_reuseport(fds[member.cookie])
        return is_tcp

    def options(self, member: Member) -> ListenerOptions:
        """Raises Closed when it is closed."""
        if member.cookie in self._copies:
            return sockets.listener_options(self._copies[member.cookie])
        with discover.descriptors([member]) as fds:
            return sockets.listener_options(fds[member.cookie])

    def keep(self, members: Sequence[Member]) -> None:
        """Hold copies of listeners: whoever closes them, they stay open. Raises as discover.take(), not Closed."""
        for member in members:
            if member.cookie not in self._copies:
                with contextlib.suppress(Closed):
                    self._copies[member.cookie] = discover.take(member)

    def adopt(self, cookie: int, fd: int) -> None:
        """Hold a socket of the tool's own as a copy is held."""
        self._copies[cookie] = fd

    def copy(self, cookie: int) -> int | None:
        """The descriptor that keep() has of a listener."""
        return self._copies.get(cookie)

    def let_go(self) -> None:
        """Close the copies."""
        while self._copies:
            os.close(self._copies.popitem()[1])
