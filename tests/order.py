"""In which order tests run, and how long each folder took."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TypeVar

T = TypeVar("T")


def slow_first(slow: Sequence[T], others: Sequence[T], workers: int) -> list[T]:
    """Slow ones begin the part of every second worker: --dist worksteal gives each an equal part of the list.

    Servers under load need the CPU. Beside them the other workers mostly wait.
    """
    size = -(-(len(slow) + len(others)) // workers)
    lanes = -(-workers // 2)
    ordered: list[T] = []
    begun = 0
    for worker in range(workers):
        mine = slow[worker // 2 :: lanes] if worker % 2 == 0 else []
        ends = begun + max(size - len(mine), 0)
        ordered += [*mine, *others[begun:ends]]
        begun = ends
    return [*ordered, *others[begun:]]


def by_folder(durations: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Seconds of the tests of each folder, the longest first. A test is named by its node id."""
    sums: dict[str, float] = collections.defaultdict(float)
    for name, duration_s in durations:
        sums[str(PurePath(name.partition("::")[0]).parent)] += duration_s
    return sorted(sums.items(), key=lambda entry: -entry[1])
