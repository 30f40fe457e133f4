"""AutoLOWAT on a cgroup."""

from __future__ import annotations

import enum

from reuseport_tool.record import record


class Engine(enum.StrEnum):
    NATIVE = "native"
    SOLO = "solo"


@record
class FailOpens:
    """How often AutoLOWAT stopped following a socket, by reason (enum doubt of bpf/autolowat/framing.h). Its reader is
    then woken for every segment."""

    length: int
    """A length that cannot be, or above the framing's `max`."""
    too_many: int
    """Too many frames in one segment: more than 32 (`solo`) or 100 (`native`)."""
    load: int
    """The program could not read bytes of a segment."""
    order: int
    """The header of a frame came out of order, or a second time with other bytes."""
    urgent: int
    """Urgent data."""
    unseen: int
    """Data came that the program at the devices did not see: another device, a tunnel, IPv6 extension headers, or a
    program before ours."""
    race: int
    """Two processors worked on one connection."""
    application: int
    """The application set SO_RCVLOWAT or TCP_ULP itself."""
    refused: int
    """The kernel refused a value, or a segment could not be marked."""


@record
class _OnCgroup:
    cgroup: str
    """The folder of the cgroup."""
    engine: str
    """`native` or `solo`."""
    framing: str
    """The framing, as it was given."""
    ports: tuple[int, ...]
    """The ports; empty when sockets opt in by themselves."""
    devices: tuple[str, ...]
    """The network devices that have the program of `solo`; empty for `native`."""


@record
class AutolowatAttachment(_OnCgroup):
    """What `autolowat attach` did."""

    result: str
    """`attached`, `extended` (to devices that are new) or `unchanged`."""


@record
class AutolowatDetached:
    """What `autolowat detach` did."""

    cgroup: str
    """The folder of the cgroup."""
    sockets: int
    """Sockets that could be followed. Their SO_RCVLOWAT is 1 now."""


@record
class Autolowat(_OnCgroup):
    """AutoLOWAT on one cgroup. Counters are since it was attached."""

    cgroup: str
    """The folder of the cgroup, or its inode when it was removed."""
    working: bool
    """False when an attach or a detach was cut off."""
    sockets: int
    """Connections that could be followed now."""
    following: int
    """Connections that are followed now."""
    opted_in: int
    """Connections that it began to follow."""
    frames: int
    """Frames that ended."""
    wakeups_saved: int
    """Segments that ended no frame."""
    marks: int
    """Segments for which `solo` had TCP call its program."""
    fail_opens: FailOpens
    """How often following a socket was stopped, by reason."""


@record
class AutolowatStatus:
    """What `autolowat status` found."""

    attachments: tuple[Autolowat, ...]
    """One entry for each cgroup."""
