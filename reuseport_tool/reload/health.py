"""Whether the new generation accepts."""

from __future__ import annotations

from collections.abc import Callable

from reuseport_tool.errors import ToolError

_WATCH_S = 0.2  # how long to look at a listener that has nothing to accept


class AcceptGate:
    """Passed when every listener was seen to accept: its queue became shorter, or is empty after a while."""

    def __init__(self, cookies: set[int], now_s: Callable[[], float]) -> None:
        self._left = set(cookies)
        self._queues: dict[int, int] = {}
        self._now_s = now_s
        self._begun = now_s()

    def passed(self, queues: dict[int, int]) -> bool:
        gone = self._left - queues.keys()
        if gone:
            raise ToolError(f"{len(gone)} of the new listeners closed again")
        watched = self._now_s() - self._begun >= _WATCH_S
        for cookie in list(self._left):
            shorter = queues[cookie] < self._queues.get(cookie, 0)
            if shorter or (watched and not queues[cookie]):
                self._left.discard(cookie)
            self._queues[cookie] = queues[cookie]
        return not self._left

    def waiting(self) -> str:
        waiting = sum(self._queues.get(cookie, 0) for cookie in self._left)
        return f"{waiting} connections, or bytes of datagrams, wait in {len(self._left)} queues"
