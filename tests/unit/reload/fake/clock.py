"""A clock that only waiting moves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.unit.reload.fake.part import Part


class FakeClock(Part):
    def wall_s(self) -> float:
        return self._world.now

    def now_s(self) -> float:
        return self._world.now

    def interrupted(self) -> bool:
        return self._world.interrupted

    def check(self) -> None:
        if self._world.interrupted and not self._world.shields:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        self._world.shields += 1
        try:
            yield
        finally:
            self._world.shields -= 1

    def wait(self, condition: Callable[[], bool], timeout_s: float, told: bool = False, closely_s: float = 0.0) -> bool:
        until = self._world.now + timeout_s
        while not condition():
            self.check()
            if self._world.now >= until:
                return False
            self._world.tap("sleep")
            self._world.advance(0.1 if self._world.now < until - 2 else 0.2)
        self.check()
        return True
