"""The UDP sockets of a world in memory, and what is given on while nobody reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.kernel.iterator import UdpInfo
from reuseport_tool.kernel.udp_sent import Sent
from reuseport_tool.models import Endpoint, FlowMode
from tests.records import some
from tests.unit.reload.fake.part import Part
from tests.unit.reload.fake.records import Sock, is_udp

DEFAULT_BUFFER = 1000


class FakeDatagrams(Part):
    """UDP sockets that read at once; what they send is not counted before a test says so."""

    def sockets(self) -> Mapping[int, UdpInfo]:
        return {cookie: udp_info(sock) for cookie, sock in self._world.socks.items() if is_udp(sock)}

    def last_seen(self, cookie: int) -> UdpInfo | None:
        return self.sockets().get(cookie)

    def watch(self, cookies: Collection[int]) -> None:
        pass

    def sent(self) -> Mapping[int, Sent]:
        return {}

    def barrier(self) -> None:
        pass

    def flow_mode(self, endpoint: Endpoint) -> FlowMode | None:
        return FlowMode.NONE if endpoint in self._world.pins else None

    def flows(self, endpoint: Endpoint) -> Iterable[RawFlow]:
        return ()

    def open_slots(self, endpoint: Endpoint, generation: int) -> Collection[int]:
        return ()

    def keep_flows(self, endpoint: Endpoint, now_s: float) -> None:
        pass

    def kept_flows(self, endpoint: Endpoint) -> None:
        return None

    def connection_ids(self, endpoint: Endpoint) -> int | None:
        return None

    def is_crowded(self, endpoint: Endpoint) -> bool:
        return False

    def connected(self, endpoint: Endpoint) -> tuple[BoundSocket, ...]:
        return ()

    def offer(self, endpoint: Endpoint, count: int) -> None:
        pass

    def ask(self, endpoint: Endpoint, payload: bytes, timeout_s: float) -> None:
        if not self._world.url_answers:
            raise ToolError("no answer")


class FakeGap(Part):
    """What is given on waits in the new socket then. `gap_works` says whether it can be."""

    def check(self, endpoint: Endpoint) -> None:
        if not self._world.gap_works:
            raise Unsupported("no raw sockets")

    def park(self, member: Member) -> Member:
        if not self._world.may_park:
            raise ToolError("in use")
        cookie = self._world.listen(self._world.tool, member.socket.endpoint, accepts=False)
        self._world.socks[cookie].holders.clear()
        self._world.copies.add(cookie)
        return Member(dataclasses.replace(member.socket, cookie=cookie), ())

    def buffers(self, members: Sequence[Member]) -> tuple[int, ...]:
        return tuple(self._world.buffers.get(member.cookie, DEFAULT_BUFFER) for member in members)

    def resize(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        self._world.buffers |= {member.cookie: size for member, size in zip(members, sizes, strict=True)}

    def give(self, endpoint: Endpoint, cookie: int) -> tuple[int, int]:
        sock = self._world.socks.get(cookie)
        if sock is None or cookie not in self._world.copies or not sock.queue:
            return 0, 0
        taken = min(sock.queue, 2)
        sock.queue -= taken
        new = min(self._world.gets_new(endpoint))
        assert new != cookie
        self._world.socks[new].queue += taken
        self._world.pins[endpoint].selected += taken
        return taken, taken


def udp_info(sock: Sock) -> UdpInfo:
    return some(
        UdpInfo, cookie=sock.cookie, group=1, group_size=1, local_port=sock.endpoint.port, receive_queue=sock.queue
    )
