"""Whether the new generation accepts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from reuseport_tool.errors import ToolError

_LOOK_S = 0.01  # a listener with nothing to accept, whose process waits for a connection, is looked at for so long
_WATCH_S = 0.2  # and one whose process does not


class AcceptGate:
    """Passed when every listener was seen to accept: its queue became shorter, or is empty after a while.

    Args:
        accepting: which listeners of some have a process that waits for connections; as a rule that is not known.
    """

    def __init__(
        self,
        cookies: Collection[int],
        now_s: Callable[[], float],
        accepting: Callable[[Collection[int]], Collection[int]] = lambda _empty: (),
    ) -> None:
        self._left = set(cookies)
        self._queues: dict[int, int] = {}
        self._now_s = now_s
        self._accepting = accepting
        self._begun = now_s()

    def passed(self, queues: Mapping[int, int]) -> bool:
        """Look at the queues, by cookie. Raises ToolError for a listener that closed again."""
        gone = self._left - queues.keys()
        if gone:
            raise ToolError(f"{len(gone)} of the new listeners closed again")
        shorter = {cookie for cookie in self._left if queues[cookie] < self._queues.get(cookie, 0)}
        self._left -= shorter
        self._left -= self._idle({cookie for cookie in self._left if not queues[cookie]})
        self._queues = {cookie: queues[cookie] for cookie in self._left}
        return not self._left

    def _idle(self, empty: set[int]) -> set[int]:
        """Those of the empty ones that have been watched for long enough."""
        watched_s = self._now_s() - self._begun
        if watched_s >= _WATCH_S:
            return empty
        return empty.intersection(self._accepting(empty)) if empty and watched_s >= _LOOK_S else set()

    def waiting(self) -> str:
        """What is left, in words."""
        waiting = sum(self._queues.values())
        return f"{waiting} connections, or bytes of datagrams, wait in {len(self._left)} queues"
