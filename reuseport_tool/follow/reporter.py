"""What a follower tells of: each thing once, with the process that it is about."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from reuseport_tool.follow.owners import Owners
from reuseport_tool.kernel import processes
from reuseport_tool.models import Endpoint, FollowEvent, Happening

Tell = Callable[[FollowEvent], None]
_STRANGER = "its process is no kin of the working generation's: 'reload --new-pid' or 'map add' takes it in"


class Reporter:
    """Tells events.

    Args:
        tell: called with each event.
        hints: by pid, when the kernel said that the process began to listen (CLOCK_MONOTONIC, nanoseconds).
    """

    def __init__(self, tell: Tell, owners: Owners, hints: Mapping[int, int]) -> None:
        self.tell = tell
        self._owners = owners
        self._hints = hints
        self._told: set[FollowEvent] = set()
        self._detached: set[Endpoint] = set()

    def forget(self, present: Collection[int]) -> None:
        """What was told of listeners that are gone."""
        self._told = {event for event in self._told if event.cookie is None or event.cookie in present}

    def once(self, event: FollowEvent) -> None:
        if event not in self._told:
            self._told.add(event)
            self.tell(event)

    def failed(self, endpoint: Endpoint, why: str, cookie: int | None = None) -> None:
        self.once(FollowEvent(event=Happening.FAILED, endpoint=str(endpoint), cookie=cookie, detail=why))

    def attached(self, group: Endpoint, generation: int, result: str) -> None:
        self.tell(FollowEvent(event=Happening.ATTACHED, endpoint=str(group), generation=generation, detail=result))

    def registered(self, group: Endpoint, generation: int, slot: int | None, cookie: int) -> None:
        since = max((self._hints[pid] for pid in self._owners.pids([cookie]) if pid in self._hints), default=None)
        delay_s = None if since is None else round((time.monotonic_ns() - since) / 1e9, 6)
        event = self._of_listener(Happening.REGISTERED, group, cookie)
        self.tell(replace(event, generation=generation, slot=slot, delay_s=delay_s))

    def left_alone(self, group: Endpoint, cookies: Collection[int]) -> None:
        for cookie in cookies:
            self.once(replace(self._of_listener(Happening.LEFT_ALONE, group, cookie), detail=_STRANGER))

    def detached(self, group: Endpoint) -> None:
        """Once, until it is seen_attached() again."""
        if group not in self._detached:
            self._detached.add(group)
            self.tell(FollowEvent(event=Happening.DETACHED, endpoint=str(group), detail="'attach' takes it up again"))

    def seen_attached(self, group: Endpoint) -> None:
        self._detached.discard(group)

    def _of_listener(self, event: Happening, group: Endpoint, cookie: int) -> FollowEvent:
        """With the pid and the name of one that holds it."""
        pid = min(self._owners.pids([cookie]), default=None)
        command = None if pid is None else processes.command(pid)
        return FollowEvent(event=event, endpoint=str(group), cookie=cookie, pid=pid, command=command)
