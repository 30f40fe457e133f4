"""The report of a reload."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Strategy(enum.StrEnum):
    """How a reload moves the connections that nobody has accepted yet."""

    MIGRATE = "migrate"
    SYSCTL = "sysctl"
    DRAIN = "drain"


@dataclass(frozen=True)
class Side:
    """One side of a reload: its generation (None without a program), processes and listener cookies."""

    generation: int | None
    pids: tuple[int, ...]
    listeners: tuple[int, ...]


@dataclass(frozen=True)
class Migrated:
    """Migrations by the state of the connection, from the program's counters.

    With the strategy sysctl no program counts: the kernel's TCPMigrateReqSuccess is `total` and the
    states are None.
    """

    established: int | None
    syn_recv: int | None
    new_syn_recv: int | None
    total: int


@dataclass(frozen=True)
class Lost:
    """Growth of the namespace's counters during the reload.

    `migrate_failures` is TCPMigrateReqFailure. `listen_drops` and `listen_overflows` are of every
    listener in the namespace. `aborted_accepted` (TCPAbortOnClose) are connections that a server had
    accepted and closed with unread data: its own doing, reported apart.
    """

    migrate_failures: int
    listen_drops: int
    listen_overflows: int
    aborted_accepted: int


@dataclass(frozen=True)
class Queues:
    """Connections in the old listeners when the old side was stopped; `half_open` may be unknown."""

    accept_queue: int
    half_open: int | None


@dataclass(frozen=True)
class Step:
    """One step of a reload. `outcome` is done, skipped or failed."""

    name: str
    duration_s: float
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class CanaryStep:
    """What one share of a canary came to: new connections by the program's counters."""

    percent: float
    duration_s: float
    to_new: int
    to_old: int


@dataclass(frozen=True)
class Leftovers:
    """Accepted connections of the old side, after it stopped listening.

    Attributes:
        connections: at the first look.
        ended: by --kill-leftovers.
        left: at the end.
        waited_s: between the first and the last look.
        older_than_s: every one of them is at least so old: the old side accepts none since.
        idle_min_s, idle_max_s: without data, at the last look that saw one; None where none was seen.
    """

    connections: int
    ended: int
    left: int
    waited_s: float
    older_than_s: float
    idle_min_s: float | None
    idle_max_s: float | None


@dataclass(frozen=True)
class Reload:
    """The report of a reload (docs/json.md).

    `switch_us` is None where nothing was switched, `leftovers` where nobody looked.
    """

    endpoint: str
    result: str
    strategy: str
    old: Side
    new: Side
    queued_at_stop: Queues
    migrated: Migrated
    lost: Lost
    steps: tuple[Step, ...]
    switch_us: float | None
    duration_s: float
    warnings: tuple[str, ...] = ()
    canary: tuple[CanaryStep, ...] = ()
    leftovers: Leftovers | None = None
