"""All processes at one moment, by one walk over /proc: who descends from whom."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

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
            with contextlib.suppress(OSError):
                # The name of the program stands in brackets and may hold any byte.
                fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split(None, 20)
                yield Row(
                    pid=int(name),
                    parent=int(fields[1]),
                    start_ticks=int(fields[19]),
                    session=int(fields[3]),
                    ended=fields[0] in (b"Z", b"X"),
                )


def _read(path: str) -> bytes:
    """A short file: a reload reads thousands of them, and a file object takes longer than the reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
