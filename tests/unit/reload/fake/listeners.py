"""The listeners of a world in memory: who holds them, what waits in them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from reuseport_tool.errors import Closed
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.iterator import ListenerInfo, Snapshot
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.models import Endpoint, Protocol
from tests.unit.reload.fake.part import Part
from tests.unit.reload.fake.records import Sock, is_udp


class FakeListeners(Part):
    def _bound(self, sock: Sock) -> BoundSocket:
        return BoundSocket(
            endpoint=sock.endpoint,
            cookie=sock.cookie,
            inode=sock.cookie + 10_000,
            uid=0,
            accept_queue=None if is_udp(sock) else sock.queue,
            receive_queue=sock.queue if is_udp(sock) else 0,
            backlog=sock.backlog,
            mptcp=False,
        )

    def _member(self, cookie: int, among: Collection[int] | None = None) -> Member:
        sock = self._world.socks[cookie]
        pids = [pid for pid in sorted(sock.holders) if among is None or pid in among]
        return Member(self._bound(sock), tuple(Holder(pid, 3) for pid in pids))

    def everything(self, protocol: Protocol) -> Mapping[Endpoint, tuple[Member, ...]]:
        found: dict[Endpoint, list[Member]] = {}
        for cookie, sock in self._world.socks.items():
            if sock.endpoint.protocol is protocol:
                found.setdefault(sock.endpoint, []).append(self._member(cookie))
        return {endpoint: tuple(members) for endpoint, members in found.items()}

    def on(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        wanted = set(groups)
        return {group: entries for group, entries in self.on_ports(wanted).items() if group in wanted}

    def on_ports(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        ports = {(each.protocol, each.port) for each in groups}
        found: dict[Endpoint, list[BoundSocket]] = {}
        for sock in self._world.socks.values():
            if (sock.endpoint.protocol, sock.endpoint.port) in ports:
                found.setdefault(sock.endpoint, []).append(self._bound(sock))
        return {endpoint: tuple(entries) for endpoint, entries in found.items()}

    @contextlib.contextmanager
    def watched(self, groups: Collection[Endpoint]) -> Iterator[bool]:
        self._world.tap("watched")
        yield True

    def with_holders(self, entries: Collection[BoundSocket], among: Collection[int] | None) -> tuple[Member, ...]:
        return tuple(self._member(each.cookie, among) for each in entries if each.cookie in self._world.socks)

    def require_visible(self, members: Sequence[Member]) -> None:
        pass

    def kernel(self, wanted: Collection[int] | None = None) -> Snapshot | None:
        if not self._world.sees_kernel:
            return None
        infos = {
            sock.cookie: ListenerInfo(
                cookie=sock.cookie,
                group=1,
                program_id=None,
                index=None,
                group_size=1,
                accept_queue=sock.queue,
                backlog=sock.backlog,
                half_open=sock.half_open,
            )
            for sock in self._world.socks.values()
        }
        return Snapshot(listeners=infos, requests={})

    def is_reuseport(self, member: Member) -> bool:
        sock = self._world.socks.get(member.cookie)
        return sock is None or sock.reuseport

    def options(self, member: Member) -> ListenerOptions:
        if member.cookie not in self._world.socks:
            raise Closed("closed")
        return self._world.socks[member.cookie].options

    def keep(self, members: Sequence[Member]) -> None:
        self._world.copies |= {member.cookie for member in members}

    def let_go(self) -> None:
        copies, self._world.copies = self._world.copies, set()
        for cookie in copies:
            self._world.close(cookie, -1)
