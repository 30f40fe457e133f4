"""The accepted connections that the old side still holds after it stopped listening."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.kernel import processes
from reuseport_tool.kernel.processes import Identity
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.sockets import destroy
from reuseport_tool.sockets import select as sockets
from reuseport_tool.sockets.select import Filter, Found, Walker


class OldConnections(Closing):
    """Looks again and again at what the old side holds. A context manager.

    Args:
        groups: whose connections.
        side: the old side's processes; those that end hold nothing any more.

    Raises:
        Unsupported, MissingCapability: from the iterators.
    """

    def __init__(self, groups: Sequence[Endpoint], side: Collection[Identity]) -> None:
        self._groups = groups
        self._side = side
        self._last: list[Found] = []
        self._idle: tuple[float | None, float | None] = (None, None)
        with ExitStack() as stack:
            self._walker = stack.enter_context(Walker([Protocol.TCP]))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def count(self) -> int:
        """How many there are now."""
        found = self._read()
        self._last, self._idle = found, _idle(found) if found else self._idle
        return len(found)

    def idle_s(self) -> tuple[float | None, float | None]:
        """The shortest and the longest time without data, at the last look that saw one."""
        return self._idle

    def _read(self) -> list[Found]:
        pids = tuple(process.pid for process in self._side if process.runs())
        if not pids:
            return []
        raws = self._walker.read()
        matching = (sockets.select(Filter(endpoint=group, pids=pids), raws, None) for group in self._groups)
        return [found for group in matching for found in group if destroy.may_end(Filter(), found.raw)]

    def end(self) -> int:
        """End those that were counted, but what another process holds as well. Returns how many ended."""
        chosen = self._last
        side = {process.pid for process in self._side}
        held = processes.holders([found.raw.inode for found in chosen])
        only_theirs = [found for found in chosen if {holder.pid for holder in held[found.raw.inode]} <= side]
        endings = destroy.end(Filter(), only_theirs, self._walker)
        return sum(ending.result in ("ended", "gone") for ending in endings)


def _idle(found: Sequence[Found]) -> tuple[float | None, float | None]:
    known = [entry.shown.idle_s for entry in found if entry.shown.idle_s is not None]
    return (min(known), max(known)) if known else (None, None)
