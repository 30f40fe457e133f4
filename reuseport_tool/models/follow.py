"""What a follower tells."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Happening(enum.StrEnum):
    """What `attach --follow` tells of."""

    FOLLOWING = "following"
    ATTACHED = "attached"
    REGISTERED = "registered"
    LEFT_ALONE = "left-alone"
    LOCKED = "locked"
    EVENTS_LOST = "events-lost"
    DETACHED = "detached"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class FollowEvent:
    """One line of `attach --follow`. `delay_s` is from listen() or bind() to the registration."""

    event: Happening
    endpoint: str
    generation: int | None = None
    slot: int | None = None
    cookie: int | None = None
    pid: int | None = None
    command: str | None = None
    delay_s: float | None = None
    detail: str = ""
