"""One reuseport group: its sockets, its program, and what attach and detach did to it."""

from __future__ import annotations

import enum

from reuseport_tool.models.flows import FlowTable
from reuseport_tool.models.proof import Resets
from reuseport_tool.record import record


class Policy(enum.StrEnum):
    """How the program assigns a new connection to a listener of the working generation."""

    HASH = "hash"
    ROUND_ROBIN = "round-robin"
    CPU = "cpu"
    SOURCE_IP = "source-ip"


@record
class Program:
    """The program that the kernel runs for a group."""

    id: int
    """The kernel's id of the program; 0 for a classic BPF filter."""
    name: str
    """The kernel's name of the program."""
    policy: str | None
    """The value of `--policy`, or the name of your own program; null for a program that this tool did not attach."""


@record
class Listener:
    """One socket of a group."""

    cookie: int
    """SO_COOKIE, the identity of the socket."""
    pid: int | None
    """The topmost process that holds the socket; null when no visible process does."""
    command: str | None
    """The name of that process, or null."""
    uid: int
    """The owner of the socket."""
    generation: int | None
    """The generation that the socket is registered in, or null."""
    slot: int | None
    """Its slot in that generation's map, or null."""
    accept_queue: int | None
    """Connections that wait for accept(); null for UDP."""
    backlog: int | None
    """The limit of the accept queue; null for UDP."""
    half_open: int | None
    """Request sockets that wait for the final ACK; null where the kernel does not tell."""
    flag: str
    """`working`, `canary`, `old` (any other generation), `foreign` (not registered, so it gets nothing), or `-`
    (no program of this tool is attached)."""
    receive_queue: int | None = None
    """Bytes that a UDP socket has not read yet; null for TCP, and where the kernel does not tell."""
    drops: int | None = None
    """Datagrams that a UDP socket dropped since it was opened; null as `receive_queue`."""


@record
class Counters:
    """Runs of the program since it was attached, over all CPUs, by their outcome."""

    selected: int = 0
    """It selected a listener of the working generation for a new connection."""
    fallback: int = 0
    """It found nothing to select, and the kernel chose."""
    migrated_established: int = 0
    """It migrated an established connection from the accept queue of a closing listener."""
    migrated_syn_recv: int = 0
    """It migrated a TCP Fast Open connection from the accept queue of a closing listener."""
    migrated_new_syn_recv: int = 0
    """It migrated a request socket that waited for the final ACK."""
    dropped: int = 0
    """A program of your own refused the connection."""
    canary: int = 0
    """It selected a listener of the canary generation, by that generation's share."""
    steered: int = 0
    """It selected a listener of the canary generation for a connection of this tool (`--health-url`, the probe)."""

    def since(self, earlier: Counters) -> Counters:
        """The growth since an earlier look."""
        growth = {name: getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__}
        return Counters(**growth)


@record
class Canary:
    """The generation beside the working one that gets a share of the new connections."""

    generation: int
    """Number of the generation."""
    percent: float
    """Its share of the new connections."""


@record
class Transaction:
    """A reload that has begun and not ended."""

    running: bool
    """False when its run was killed: `reload --resume` finishes it, `reload --abort` undoes it."""
    step: str
    """The step that runs, or in which the run was killed."""
    pid: int
    """The process of the tool that runs, or ran, the reload."""
    begun_at: float
    """When the reload began, in seconds since 1970."""
    share_until: float | None = None
    """When the present share of a canary will have lasted long enough, in seconds since 1970; null without a canary."""


@record
class LastReload:
    """What became of the last reload of a group. One that was refused before it started anything leaves no record."""

    result: str
    """`reloaded`, `rolled-back`, or `failed` when something went wrong after the old server was told to stop."""
    ended_at: float
    """When it ended, in seconds since 1970."""
    duration_s: float
    """Duration of the whole reload."""
    moved: int | None
    """Connections that the kernel moved to another listener, in all groups of the reload; null for a UDP group."""
    lost: int | None
    """Connections that the kernel reset or refused before a server accepted them, in all groups of the reload. For a
    UDP group: its datagrams that were dropped, and its flows that were cut or evicted; unread bytes count as one. Null
    when it could not be measured."""
    failure: str | None
    """Why it failed, or null."""


class ProblemKind(enum.StrEnum):
    """Why `status --check` exits with 1."""

    STALE = "stale"
    FOREIGN = "foreign"
    IMBALANCE = "imbalance"
    SPLIT = "split"
    DAMAGED = "damaged"
    CROWDED = "crowded"


@record
class Problem:
    """What an operator should look at."""

    kind: str
    """`damaged` (pins are lost or exchanged), `stale` (pins or a killed reload are left), `foreign` (a program or
    listeners that this tool does not know), `imbalance` (the accept queue of one listener is nearly full while those of
    the others are nearly empty), `split` (the kernel keeps the UDP sockets of this endpoint in more than one group),
    or `crowded` (more than half of the map of flows is used)."""
    detail: str
    """One sentence."""


@record
class Followed:
    """What a running `attach --follow` has counted for a group."""

    pid: int
    """The follower."""
    since: float
    """When it began to count, in seconds since 1970."""
    resets: Resets
    """The resets on the group's port since then, of all groups on that port."""


@record
class OldSide:
    """What processes hold that have no listener of the group but old ones."""

    connections: int
    """Accepted connections to the group's address and port."""
    pids: tuple[int, ...]
    """These processes."""
    seen_at: float
    """When they were counted, in seconds since 1970."""


@record
class Group:
    """The sockets that the kernel keeps in one reuseport group."""

    endpoint: str
    """For example `tcp://10.0.0.1:80`, `tcp://[::]:80`, or `tcp://[::]:80,v6only` for the group with IPV6_V6ONLY."""
    netns: str
    """The network namespace, as `net:[inode]`."""
    program: Program | None
    """The program of the group, or null."""
    working_generation: int | None
    """The generation that new connections go to, or null."""
    listeners: tuple[Listener, ...]
    """The sockets of the group."""
    counters: Counters | None
    """What the program counted; null without a program of this tool."""
    stale: bool = False
    """Pins of this tool are left, but the group does not run its program."""
    damage: str | None = None
    """What is wrong with the pins of this tool, or null."""
    canary: Canary | None = None
    """The canary generation, or null."""
    reload: Transaction | None = None
    """The reload that has begun and not ended, or null."""
    last_reload: LastReload | None = None
    """What became of the last reload since the program was attached; null when none was made, or it is not known."""
    parts: int | None = None
    """How many reuseport groups the kernel keeps for the endpoint; more than 1 when a UDP group has split; null where
    the kernel does not tell."""
    flows: FlowTable | None = None
    """The flows of a UDP group that keeps them, or null."""
    problems: tuple[Problem, ...] = ()
    """What `status --check` exits with 1 for."""
    reuseport: bool | None = None
    """Whether the sockets have SO_REUSEPORT, so that others can join; null where the kernel does not tell."""
    mptcp: bool = False
    """A listener uses MPTCP, for which the kernel runs no program."""
    followed: Followed | None = None
    """What a running follower has counted; null where none runs, or where it cannot count."""
    old_side: OldSide | None = None
    """What the old server still holds; only with `--watch`, and null for UDP or where it cannot be seen."""


@record
class GonePins:
    """The pins of a group whose network namespace is gone."""

    endpoint: str
    """The group."""
    netns: str
    """The network namespace that was, as `net:[inode]`."""
    pins: str
    """Their folder on bpffs."""


@record
class Status:
    """What `status` found. With `--watch` one object follows another."""

    groups: tuple[Group, ...]
    """The groups that match."""
    gone: tuple[GonePins, ...] = ()
    """Pins of network namespaces that do not exist any more; `detach --gone` removes them."""
    unseen: str | None = None
    """Why pins could not be looked at, so that programs of this tool may be shown as foreign; null when they could."""


@record
class Attached:
    """What attach did to one group."""

    endpoint: str
    """The group."""
    result: str
    """`attached`, `replaced` (another policy was attached before), `repaired` (the pins were made anew) or
    `unchanged`."""
    program: Program
    """The program that the group runs now."""
    generation: int
    """The working generation."""
    registered: tuple[int, ...]
    """Cookies of the listeners that this run registered."""
    pins: str
    """The folder on bpffs that holds the pins."""
    duration_s: float
    """Time spent on this group."""


@record
class AttachReport:
    """What `attach` did."""

    attached: tuple[Attached, ...]
    """One entry for each group."""


@record
class Detached:
    """What detach did to one group."""

    endpoint: str
    """The group."""
    result: str
    """`detached`, `cleaned` when only pins were left and were removed, or `gone` when they were of a network namespace
    that does not exist any more."""
    pins: str
    """The folder on bpffs that was removed."""


@record
class DetachReport:
    """What `detach` did."""

    detached: tuple[Detached, ...]
    """One entry for each group."""


@record
class MigrateReq:
    """The sysctl net.ipv4.tcp_migrate_req of a network namespace."""

    netns: str
    """The network namespace, as `net:[inode]`."""
    enabled: bool
    """Whether the sysctl is on."""
    changed: bool
    """Whether this run changed it."""
