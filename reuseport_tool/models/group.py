"""One reuseport group: its listeners, program, generations and what verbs did to it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Policy(enum.StrEnum):
    """How a new connection is given to a listener of the working generation."""

    HASH = "hash"
    ROUND_ROBIN = "round-robin"
    CPU = "cpu"
    SOURCE_IP = "source-ip"


@dataclass(frozen=True)
class Program:
    """The sk_reuseport program of a group. `policy` is None for a program that is not ours."""

    id: int
    name: str
    policy: str | None


@dataclass(frozen=True)
class Listener:
    """One socket of a group.

    Attributes:
        cookie: SO_COOKIE, the identity of the socket.
        pid: the topmost process that holds it, None when no process does.
        command: the name of that process.
        uid: owner of the socket.
        generation, slot: where it is registered, None when it is not.
        accept_queue: connections that wait for accept() (None for UDP).
        backlog: the limit of the accept queue.
        half_open: request sockets that wait for the final ACK; None where the kernel does not tell.
        flag: "working", "canary", "old" (any other generation), "foreign" (the program never selects it),
            or "-" where no program of ours is attached.
    """

    cookie: int
    pid: int | None
    command: str | None
    uid: int
    generation: int | None
    slot: int | None
    accept_queue: int | None
    backlog: int | None
    half_open: int | None
    flag: str


@dataclass(frozen=True)
class Counters:
    """What the program counted over all CPUs since it was attached. Unit: runs of the program.

    `canary` and `steered` are new connections to the canary generation: by its share, and the tool's own.
    """

    selected: int = 0
    fallback: int = 0
    migrated_established: int = 0
    migrated_syn_recv: int = 0
    migrated_new_syn_recv: int = 0
    dropped: int = 0
    canary: int = 0
    steered: int = 0

    def since(self, earlier: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Canary:
    """The generation beside the working one that gets a share of the new connections, percent."""

    generation: int
    percent: float


@dataclass(frozen=True)
class Transaction:
    """A reload that has begun and not ended: it runs, or was killed in `step`.

    `begun_at` is in seconds since 1970, `pid` the tool's.
    """

    running: bool
    step: str
    pid: int
    begun_at: float


@dataclass(frozen=True)
class Group:
    """The sockets bound with SO_REUSEPORT to one endpoint of one network namespace.

    `stale` says that pins of ours are left although the group does not run our program.
    """

    endpoint: str
    netns: str
    program: Program | None
    working_generation: int | None
    listeners: tuple[Listener, ...]
    counters: Counters | None
    stale: bool = False
    canary: Canary | None = None
    reload: Transaction | None = None


@dataclass(frozen=True)
class Status:
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Attached:
    """What attach did. `result` is attached, replaced (another policy) or unchanged."""

    endpoint: str
    result: str
    program: Program
    generation: int
    registered: tuple[int, ...]
    pins: str
    duration_s: float


@dataclass(frozen=True)
class AttachReport:
    attached: tuple[Attached, ...]


@dataclass(frozen=True)
class Detached:
    endpoint: str
    result: str
    pins: str


@dataclass(frozen=True)
class DetachReport:
    detached: tuple[Detached, ...]


@dataclass(frozen=True)
class Slot:
    slot: int
    cookie: int


@dataclass(frozen=True)
class GenerationMap:
    """One REUSEPORT_SOCKARRAY of a group: its generation, capacity and occupied slots."""

    endpoint: str
    generation: int
    working: bool
    members: int
    capacity: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Maps:
    maps: tuple[GenerationMap, ...]


@dataclass(frozen=True)
class MapChange:
    """What a map verb did. `slot` and `cookie` are None for a switch."""

    endpoint: str
    change: str
    generation: int
    slot: int | None = None
    cookie: int | None = None


@dataclass(frozen=True)
class MapChanges:
    changes: tuple[MapChange, ...]


@dataclass(frozen=True)
class MigrateReq:
    netns: str
    enabled: bool
    changed: bool
