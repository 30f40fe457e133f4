"""AutoLOWAT on a cgroup."""

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


@dataclass(frozen=True, kw_only=True)
class FailOpens:
    """How often AutoLOWAT stopped following a socket, by reason (enum doubt of bpf/framing.h). Its reader is then
    woken for every segment."""

    length: int
    """A length that cannot be, or above the framing's `max`."""
    too_many: int
    """Too many frames in one segment: more than 256 (`paired`) or 100 (`native`)."""
    load: int
    """The program could not read bytes of a segment."""
    order: int
    """The header of a frame came out of order, or with the handshake."""
    urgent: int
    """Urgent data."""
    unmarked: int
    """The end of a frame came without the sender's mark, or below IPv6 extension headers."""
    race: int
    """Two processors worked on one socket."""
    application: int
    """The application set SO_RCVLOWAT or TCP_ULP itself."""
    refused: int
    """The kernel refused a value."""


@dataclass(frozen=True, kw_only=True)
class AutolowatAttachment:
    """What `autolowat attach` did."""

    cgroup: str
    """The folder of the cgroup."""
    engine: str
    """`native` or `paired`."""
    framing: str
    """The framing, as it was given."""
    ports: tuple[int, ...]
    """The ports; empty when sockets opt in by themselves."""
    role: str
    """`both`, `receiver` or `sender`."""
    result: str
    """`attached` or `unchanged`."""


@dataclass(frozen=True, kw_only=True)
class AutolowatDetached:
    """What `autolowat detach` did."""

    cgroup: str
    """The folder of the cgroup."""
    sockets: int
    """Sockets that could be followed. Their SO_RCVLOWAT is 1 now."""


@dataclass(frozen=True, kw_only=True)
class Autolowat:
    """AutoLOWAT on one cgroup. Counters are since it was attached."""

    cgroup: str
    """The folder of the cgroup, or its inode when it was removed."""
    engine: str
    """`native` or `paired`."""
    framing: str
    """The framing, as it was given."""
    ports: tuple[int, ...]
    """The ports; empty when sockets opt in by themselves."""
    role: str
    """`both`, `receiver` or `sender`."""
    working: bool
    """False when an attach or a detach was cut off."""
    sockets: int
    """Connections that could be followed now."""
    following: int
    """Connections that are followed now."""
    agreed: int | None
    """Connections whose other end has the tool, too; null for `native`, which needs no other end."""
    opted_in: int
    """Sockets that opted in by themselves."""
    frames: int
    """Frames that ended."""
    wakeups_saved: int
    """Segments that ended no frame."""
    fail_opens: FailOpens
    """How often following a socket was stopped, by reason."""


@dataclass(frozen=True, kw_only=True)
class AutolowatStatus:
    """What `autolowat status` found."""

    attachments: tuple[Autolowat, ...]
    """One entry for each cgroup."""
