"""AutoLOWAT: what is attached and what it did."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Engine(enum.StrEnum):
    NATIVE = "native"
    PAIRED = "paired"


class Role(enum.StrEnum):
    """What this end of a paired connection does."""

    BOTH = "both"
    RECEIVER = "receiver"
    SENDER = "sender"


@dataclass(frozen=True)
class FailOpens:
    """How often following a socket ended in doubt, by reason (enum doubt of bpf/autolowat/framing.h)."""

    length: int
    too_many: int
    load: int
    order: int
    urgent: int
    unmarked: int
    race: int
    application: int
    refused: int


@dataclass(frozen=True)
class AutolowatAttachment:
    """What is attached to one cgroup. `result` is attached or unchanged. No `ports` means any."""

    cgroup: str
    engine: str
    framing: str
    ports: tuple[int, ...]
    role: str
    result: str


@dataclass(frozen=True)
class AutolowatDetached:
    """`sockets` were followed and are at SO_RCVLOWAT 1 now."""

    cgroup: str
    sockets: int


@dataclass(frozen=True)
class Autolowat:
    """One cgroup's AutoLOWAT. Counts are of the time since it was attached, `sockets` and `following` of now.

    Attributes:
        sockets: connections that could be followed; `following`: those that are.
        agreed: connections whose other end has the tool; None for the engine native, which needs no other end.
        wakeups_saved: segments that completed no frame.
    """

    cgroup: str
    engine: str
    framing: str
    ports: tuple[int, ...]
    role: str
    working: bool
    sockets: int
    following: int
    agreed: int | None
    opted_in: int
    frames: int
    wakeups_saved: int
    fail_opens: FailOpens


@dataclass(frozen=True)
class AutolowatStatus:
    attachments: tuple[Autolowat, ...]
