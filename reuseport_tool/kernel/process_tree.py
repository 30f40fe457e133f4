"""All processes at one moment, by one walk over /proc: who descends from whom."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from reuseport_tool.kernel import processes
from reuseport_tool.kernel.processes import ProcessIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One process. `start_ticks` is in clock ticks since boot; `ended` says that it is a zombie."""

    pid: int
    parent: int
    start_ticks: int
    session: int = 0
    ended: bool = False


class ProcessTree:
    """Rows by pid. A process whose parent is in no row is a root."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.pid: row for row in rows}
        self._children: dict[int, list[int]] = {}
        for row in self._rows.values():
            self._children.setdefault(row.parent, []).append(row.pid)

    @classmethod
    def read(cls) -> ProcessTree:
        """The processes of the PID namespace that /proc shows."""
        return cls(_rows())

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Who has this number, None for nobody; a zombie is nobody."""
        row = self._rows.get(pid)
        return None if row is None or row.ended else ProcessIdentity(pid, row.start_ticks)

    def identities(self, pids: Iterable[int]) -> tuple[ProcessIdentity, ...]:
        """Those of them that run, by pid."""
        return tuple(found for pid in sorted(set(pids)) if (found := self.identity(pid)) is not None)

    def running(self, identities: Iterable[ProcessIdentity]) -> tuple[ProcessIdentity, ...]:
        """Those that have not ended."""
        return tuple(each for each in identities if self.identity(each.pid) == each)

    def parent(self, pid: int) -> int:
        """0 for a process that is gone or has none."""
        row = self._rows.get(pid)
        return row.parent if row else 0

    def above(self, pid: int) -> Iterator[int]:
        """The process itself, its parent, and so on up to a root."""
        seen: set[int] = set()
        while pid in self._rows and pid not in seen:
            seen.add(pid)
            yield pid
            pid = self._rows[pid].parent

    def below(self, roots: Collection[int]) -> set[int]:
        """These processes and all that descend from them, as far as they run."""
        found: set[int] = set()
        left = [pid for pid in roots if pid in self._rows]
        while left:
            pid = left.pop()
            if pid not in found:
                found.add(pid)
                left += self._children.get(pid, [])
        return {pid for pid in found if not self._rows[pid].ended}

    def in_session(self, session: int) -> set[int]:
        """The processes of a session that run."""
        return {row.pid for row in self._rows.values() if row.session == session and not row.ended}

    def tops(self, pids: Collection[int]) -> set[int]:
        """Those that have none of the others above them."""
        return {pid for pid in pids if not any(above in pids for above in list(self.above(pid))[1:])}


def _rows() -> Iterator[Row]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = processes.stat_of(int(name))
            if stat:
                yield Row(
                    pid=int(name),
                    parent=int(stat[processes.PARENT]),
                    start_ticks=int(stat[processes.STARTED]),
                    session=int(stat[processes.SESSION]),
                    ended=processes.has_ended(stat),
                )
