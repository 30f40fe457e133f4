"""The connections of a world in memory: probes, counters and what the old side has accepted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reuseport_tool.errors import ToolError
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import Endpoint, Resets, SideResets
from tests.records import some
from tests.unit.reload.fake.part import Part


class FakeConnections(Part):
    def count(self) -> int:
        return self._world.old_connections

    def idle_s(self) -> tuple[float | None, float | None]:
        return (1.0, 2.0) if self._world.old_connections else (None, None)

    def end(self) -> int:
        ended, self._world.old_connections = self._world.old_connections, 0
        return ended


class FakeTraffic(Part):
    def begin(self, groups: Sequence[Endpoint], kept: Sequence[Endpoint]) -> None:
        pass

    def probe(self, endpoint: Endpoint, steered: bool) -> None:
        pass

    def ask(self, timeout_s: float, steered: bool) -> None:
        if not self._world.url_answers:
            raise ToolError("the URL answers with status 503")

    def mib(self) -> TcpCounters:
        return some(TcpCounters)

    def resets(self) -> Resets | None:
        return Resets(never_accepted=self._world.lost, handshakes=0, refused=0, accepted=0)

    def resets_of(self, side: Collection[ProcessIdentity]) -> SideResets | None:
        return SideResets(never_accepted=0, accepted=0)

    def migrate_req(self) -> str:
        return self._world.migrate_req

    def set_migrate_req(self, value: str) -> None:
        self._world.migrate_req = value

    def old_connections(self, groups: Sequence[Endpoint], side: Collection[ProcessIdentity]) -> FakeConnections:
        return FakeConnections(self._world)
