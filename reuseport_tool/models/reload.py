"""The report of a reload."""

from __future__ import annotations

import enum

from reuseport_tool.models.proof import Balance, Resets, SideResets
from reuseport_tool.record import record


class Strategy(enum.StrEnum):
    """How a reload moves the connections that the old server has not accepted yet."""

    MIGRATE = "migrate"
    SYSCTL = "sysctl"
    DRAIN = "drain"


@record
class Side:
    """The old or the new server of a reload."""

    generation: int | None
    """Number of its generation; null without a program."""
    pids: tuple[int, ...]
    """Its topmost processes."""
    listeners: tuple[int, ...]
    """Cookies of its listeners."""


@record
class Migrated:
    """Connections that the kernel moved from a closing listener to another one."""

    established: int | None
    """Established connections, by the program's counter; null with the strategy `sysctl`."""
    syn_recv: int | None
    """TCP Fast Open connections, by the program's counter; null with the strategy `sysctl`."""
    new_syn_recv: int | None
    """Half-open connections, by the program's counter; null with the strategy `sysctl`."""
    total: int
    """All of them, by the kernel's counter TCPMigrateReqSuccess of the whole network namespace."""

    @property
    def moved(self) -> int:
        """By the program's counters, or by the kernel's where there are none."""
        by_program = [count for count in (self.established, self.syn_recv, self.new_syn_recv) if count is not None]
        return sum(by_program) if by_program else self.total


@record
class Lost:
    """Growth of the network namespace's counters during the reload."""

    migrate_failures: int
    """TCPMigrateReqFailure. The exit code is 1 if there are any."""
    listen_drops: int
    """ListenDrops, of every listener in the network namespace."""
    listen_overflows: int
    """ListenOverflows, of every listener in the network namespace."""
    aborted_accepted: int
    """TCPAbortOnClose: accepted connections that a server closed with unread data. That is the server's own doing."""


@record
class Queues:
    """Connections in the old listeners when the old server was told to stop."""

    accept_queue: int
    """Connections that waited for accept()."""
    half_open: int | None
    """Request sockets that waited for the final ACK; null where the kernel does not tell."""


@record
class QueueLook:
    """The accept queue of a listener at a moment."""

    at_s: float
    """Seconds since the reload began."""
    length: int
    """Connections that waited for accept(): the most that were seen from this moment to the next one."""


@record
class ListenerQueue:
    """The accept queue of a listener during the reload, as the reload saw it when it looked."""

    cookie: int | None
    """The listener; null for all further ones of its side together."""
    old: bool
    """Whether it is one of the old server's."""
    looks: tuple[QueueLook, ...]
    """The moments at which its length had changed."""


@record
class Step:
    """One step of a reload."""

    name: str
    """prepare, start, compare, register, canary, switch, health, drain, confirm, stop, leftovers, prove or roll back.
    A resumed reload has the steps of both runs."""
    begin_s: float
    """Seconds from the start of the reload to the start of the step."""
    duration_s: float
    """Time that the step took."""
    outcome: str
    """`done`, `skipped` or `failed`."""
    detail: str = ""
    """Why the step failed, or was skipped."""


@record
class CanaryStep:
    """One share of a canary."""

    percent: float
    """The share that was asked for."""
    duration_s: float
    """Time at this share, including the health check at its end."""
    to_new: int
    """New connections that went to the new server meanwhile, by the program's counters."""
    to_old: int
    """New connections that went to the old server meanwhile, by the program's counters."""


@record
class Leftovers:
    """Accepted connections that the old server held after it stopped listening."""

    connections: int
    """At the first look."""
    ended: int
    """Ended by `--kill-leftovers`."""
    left: int
    """At the last look."""
    waited_s: float
    """From the first look to the last one."""
    older_than_s: float
    """Seconds since the old server stopped accepting. Each connection is at least this old; the kernel does not
    keep the time of birth."""
    idle_min_s: float | None
    """The shortest time without data, at the last look that saw a connection; null when none was seen."""
    idle_max_s: float | None
    """The longest time without data, at the last look that saw a connection; null when none was seen."""


@record
class HandedOver:
    """What became of the datagrams of a UDP group. The exit code is 1 if any were lost, cut or evicted."""

    endpoint: str
    """The group."""
    flows: str
    """What was kept together: `none`, the flows of each `address`, or the connections of `quic`."""
    to_old: int | None
    """Datagrams, or with flows first datagrams of a flow, that the program gave to the old server from the beginning
    to the switch; null where it was not asked."""
    to_new: int | None
    """The same from the switch to the end, given to the new server."""
    by_kernel: int | None
    """Datagrams for which the program found no socket, so that the kernel chose among both servers."""
    unread: int | None
    """Bytes in the queues of the old sockets at the last look before they closed. They are lost. Null where the kernel
    does not tell, and for multicast and broadcast addresses, where every socket gets each datagram."""
    drops_old: int | None
    """Datagrams that the old sockets dropped during the reload, because their receive buffers were full; null as
    `unread`."""
    drops_new: int | None
    """Datagrams that the new sockets dropped; null as `unread`."""
    cut: int
    """Flows that were alive when the old server was stopped, because `--drain-timeout` was over, or when it closed
    their socket before that; also sockets that it had connected to one client each."""
    evicted: int | None
    """Flows of the old server that the kernel forgot, because the map was too small: their datagrams went to the new
    server. Null where the reload was killed after the switch and resumed: what was forgotten between is not known."""
    given: int = 0
    """Datagrams that waited for a server, and that the tool sent again: with `--run` to the new one; in a roll-back to
    the old one, also what the new one had not read. With `--run` they count once, for the server that got them."""
    not_given: int = 0
    """Those that it could not give to it: they are lost."""

    @property
    def has_lost(self) -> bool:
        """Whether anything was lost, as far as that was seen."""
        return any(self._losses)

    @property
    def lost(self) -> int | None:
        """How many datagrams and flows, unread bytes as one; None where the sockets could not be looked at."""
        return None if None in self._losses else sum(filter(None, self._losses))

    @property
    def _losses(self) -> tuple[int | None, ...]:
        unread = None if self.unread is None else int(self.unread > 0)
        return unread, self.drops_old, self.drops_new, self.cut, self.evicted, self.not_given


@record
class Reload:
    """The report of a reload. It is also printed, with the result `rolled-back`, when a reload fails or is
    interrupted (exit codes 8 and 130) after something had begun."""

    endpoint: str
    """The group, or the endpoints that were asked for where there are several groups."""
    groups: tuple[str, ...] = ()
    """All groups that were handed over, or given up by `--drop`."""
    result: str
    """`reloaded`, `rolled-back`, or `failed` when the new server failed after the old one had ended."""
    strategy: str
    """`migrate`, `sysctl` or `drain`."""
    old: Side
    """The old server."""
    new: Side
    """The new server."""
    queued_at_stop: Queues
    """What the old listeners held when the old server was told to stop."""
    migrated: Migrated
    """What the kernel moved."""
    lost: Lost
    """What was lost, by the kernel's counters."""
    balance: Balance | None = None
    """Where the connections went that waited for the old server; null where that cannot be seen, or nothing was
    stopped."""
    resets: Resets | None = None
    """What the kernel reset on the ports of the reload since it began; null where that cannot be seen, as for the part
    before a kill of a reload that was resumed. Exit 1 when anything was lost."""
    resets_old: SideResets | None = None
    """Those of `resets` that processes of the old server brought about; null as there."""
    resets_new: SideResets | None = None
    """Those of `resets` that processes of the new server brought about; null as there. The others are packets that
    found nothing, and what other processes on these ports did."""
    steps: tuple[Step, ...]
    """The steps, in order."""
    switch_us: float | None
    """Duration of the switch to the new generation; null when nothing was switched."""
    begun_at: float
    """When the reload began, in seconds since 1970."""
    duration_s: float
    """Duration of the whole reload."""
    output: str | None = None
    """Where the output of the new server goes; null for stderr, and for a server that somebody else started."""
    warnings: tuple[str, ...] = ()
    """The warnings, as they were shown on stderr."""
    canary: tuple[CanaryStep, ...] = ()
    """The shares of the canary, in order."""
    queues: tuple[ListenerQueue, ...] = ()
    """The accept queues of the TCP listeners during the reload: of the first eight of each side whose queue was not
    empty, and of the others together."""
    leftovers: Leftovers | None = None
    """Connections of the old server after the stop; null when nobody looked."""
    datagrams: tuple[HandedOver, ...] = ()
    """The UDP groups, each by its own way."""


@record
class PlannedGroup:
    """One group of a reload that was only tried."""

    endpoint: str
    """The group."""
    old_listeners: int
    """Listeners of the old server."""
    other_listeners: int
    """Listeners of other instances, which stay."""
    new_listeners: int
    """Listeners of the new server that are there already (`--new-pid`)."""
    dropped: bool
    """Whether the group is given up by `--drop`."""


@record
class DryRun:
    """What a reload would do, as far as it can be known before anything starts."""

    groups: tuple[PlannedGroup, ...]
    """The groups that the reload would hand over."""
    strategy: str
    """`migrate`, `sysctl` or `drain`."""
    stop: str
    """How the old server would be stopped: a signal or a command."""
    pids: tuple[int, ...]
    """The processes that would get the signal."""
    commands: tuple[str, ...]
    """Their names."""
    code: int
    """The exit code, which is what the reload's would be: 0 when nothing is known that would stop it."""
    refusal: str | None
    """Why the reload would not begin, or would be rolled back; null when nothing is known."""
    hint: str | None
    """What to do about it."""
    warnings: tuple[str, ...]
    """The warnings that the reload would give."""
