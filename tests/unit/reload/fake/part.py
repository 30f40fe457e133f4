"""What the parts of a world in memory have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.reload.fake.world import FakeWorld


class Part:
    """A part of the world, over the state of everything."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world
