"""What the tool says in a world in memory."""

from __future__ import annotations

from reuseport_tool.models import Step
from tests.unit.reload.fake.part import Part


class FakeTell(Part):
    def begin(self, step: str) -> None:
        pass

    def end(self, step: Step) -> None:
        pass

    def note(self, message: str) -> None:
        self._world.said.append(message)

    def warn(self, message: str) -> None:
        self._world.said.append(message)
