"""The journal of a world in memory."""

from __future__ import annotations

from reuseport_tool.models import Endpoint, LastReload
from reuseport_tool.reload.state import ReloadState
from tests.unit.reload.fake.part import Part


class FakeJournal(Part):
    def write(self, state: ReloadState) -> None:
        self._world.last = state
        self._world.journal = state

    def last(self) -> ReloadState | None:
        return self._world.last

    def remove(self) -> None:
        self._world.journal = None

    def leave(self, group: Endpoint, last: LastReload) -> None:
        self._world.last_reloads[group] = last
