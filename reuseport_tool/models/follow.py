"""What `attach --follow` reports."""

from __future__ import annotations

import enum

from reuseport_tool.record import record


class Happening(enum.StrEnum):
    """What a follower reports."""

    FOLLOWING = "following"
    ATTACHED = "attached"
    REGISTERED = "registered"
    LEFT_ALONE = "left-alone"
    LOCKED = "locked"
    EVENTS_LOST = "events-lost"
    DETACHED = "detached"
    FAILED = "failed"
    STOPPED = "stopped"


@record
class FollowEvent:
    """One line of `attach --follow`."""

    event: Happening
    """`following`: ready. `left-alone`: the listener belongs to another server. `locked`: another run works on the
    group, and the follower decides when that has ended. `events-lost`: the follower looked at every socket again
    instead. `detached`: another run detached the group."""
    endpoint: str
    """The group; for `following`, `stopped` and `events-lost` what the command was given."""
    generation: int | None = None
    """Where the listener was registered; null for all but `registered`."""
    slot: int | None = None
    """Where the listener was registered; null for all but `registered`."""
    cookie: int | None = None
    """The listener, for `registered`, `left-alone` and `failed`."""
    pid: int | None = None
    """A process that holds the listener, or null."""
    command: str | None = None
    """The name of that process, or null."""
    delay_s: float | None = None
    """From listen() to the registration; null where no event told of this listener, and for UDP."""
    detail: str = ""
    """More about the event, for people."""
    at: float | None = None
    """When it was told, in seconds since 1970."""
