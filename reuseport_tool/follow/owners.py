"""Who holds which listener, remembered: to find out anew takes a walk over every descriptor of the machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reuseport_tool.kernel import processes
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.processes import Holder


class Owners:
    """The holders of the listeners that were learned, by cookie."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[Holder, int], ...]] = {}

    def learn(self, entries: Sequence[BoundSocket], hints: Collection[int]) -> None:
        """Find the holders of listeners, first among the processes that are said to have opened them."""
        for among in (hints, None):
            unknown = [entry for entry in entries if not self.of(entry.cookie)]
            held = processes.holders([entry.inode for entry in unknown], among)
            for entry in unknown:
                found = held[entry.inode]
                self._known[entry.cookie] = tuple((holder, processes.started(holder.pid)) for holder in found)

    def of(self, cookie: int) -> tuple[Holder, ...]:
        """Those that live; also a number may belong to another process by now."""
        known = self._known.get(cookie, ())
        return tuple(holder for holder, since in known if since and processes.started(holder.pid) == since)

    def pids(self, cookies: Collection[int]) -> set[int]:
        return {holder.pid for cookie in cookies for holder in self.of(cookie)}

    def keep(self, cookies: Collection[int]) -> None:
        """Forget all others."""
        self._known = {cookie: known for cookie, known in self._known.items() if cookie in cookies}
