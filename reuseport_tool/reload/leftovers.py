"""The accepted connections that the old side still holds after it stopped listening."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.kernel import processes
from reuseport_tool.kernel.processes import Identity
from reuseport_tool.models import Endpoint, Leftovers, Protocol
from reuseport_tool.sockets import destroy
from reuseport_tool.sockets import select as sockets
from reuseport_tool.sockets.select import Filter, Found, Walker

_LOOK_S = 0.5
_TELL_S = 5.0


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
        with ExitStack() as stack:
            self._walker = stack.enter_context(Walker([Protocol.TCP]))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def read(self) -> list[Found]:
        pids = tuple(process.pid for process in self._side if process.runs())
        if not pids:
            return []
        raws = self._walker.read()
        matching = (sockets.select(Filter(endpoint=group, pids=pids), raws, None) for group in self._groups)
        return [found for group in matching for found in group if destroy.may_end(Filter(), found.raw)]

    def end(self, chosen: Sequence[Found]) -> int:
        """End exactly these, by their cookies, but what another process holds as well. Returns how many ended."""
        side = {process.pid for process in self._side}
        held = processes.holders([found.raw.inode for found in chosen])
        only_theirs = [found for found in chosen if {holder.pid for holder in held[found.raw.inode]} <= side]
        endings = destroy.end(Filter(), only_theirs, self._walker)
        return sum(ending.result in ("ended", "gone") for ending in endings)


def settle(
    connections: OldConnections, timeout_s: float, kill: bool, stopped_at: float, tell: Callable[[str], None]
) -> Leftovers:
    """Wait until the old side holds none, or for `timeout_s`; then, with `kill`, end those that are left.

    Args:
        stopped_at: when the old side accepted for the last time, by time.monotonic().
    """
    begun = time.monotonic()
    left = last_seen = connections.read()
    first, told = len(left), begun
    while left and time.monotonic() - begun < timeout_s:
        if time.monotonic() - told >= _TELL_S or told == begun:
            told = time.monotonic()
            tell(f"{_describe(left)}; waiting up to {timeout_s - (told - begun):.0f} s more")
        time.sleep(min(_LOOK_S, timeout_s))
        left = connections.read()
        last_seen = left or last_seen
    ended = connections.end(left) if left and kill else 0
    waited_s = time.monotonic() - begun
    low, high = _idle(last_seen)
    older_s = time.monotonic() - stopped_at
    return Leftovers(
        connections=first,
        ended=ended,
        left=len(left) - ended,
        waited_s=round(waited_s, 3),
        older_than_s=round(older_s, 3),
        idle_min_s=low,
        idle_max_s=high,
    )


def _describe(left: Sequence[Found]) -> str:
    low, high = _idle(left)
    idle = "" if low is None else f", idle for {low:.1f} to {high:.1f} s"
    return f"the old side still holds {len(left)} accepted connection{'' if len(left) == 1 else 's'}{idle}"


def _idle(found: Sequence[Found]) -> tuple[float | None, float | None]:
    known = [entry.shown.idle_s for entry in found if entry.shown.idle_s is not None]
    return (min(known), max(known)) if known else (None, None)
