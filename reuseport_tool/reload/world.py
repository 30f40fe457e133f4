"""The seam between a reload and the world: everything that it looks at and everything that it changes.

The steps know these protocols only. reload/live.py has the kernel behind them, tests/unit/reload/ a world in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import Protocol

from reuseport_tool import models
from reuseport_tool.group.discover import Member
from reuseport_tool.group.pins import AttachedProgram, Running
from reuseport_tool.kernel.commands import Kin, Started
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.kernel.iterator import Snapshot, UdpInfo
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.kernel.udp_sent import Sent
from reuseport_tool.models import Counters, Endpoint, FlowMode, LastReload, Resets, SideResets, Step
from reuseport_tool.record import record
from reuseport_tool.reload.queue_log import QueueLog
from reuseport_tool.reload.state import ReloadState


class Clock(Protocol):
    """Time, waiting, and interrupts (SIGINT, SIGTERM, SIGHUP …), which arrive in wait() and check() only."""

    def wall_s(self) -> float:
        """Seconds since 1970."""

    def now_s(self) -> float:
        """Monotonic."""

    def wait(self, condition: Callable[[], bool], timeout_s: float, told: bool = False, closely_s: float = 0.0) -> bool:
        """Whether the condition came true in time. Raises KeyboardInterrupt at an interrupt that is not held back.

        `told` says that events tell when to ask, so that the pauses between may be long; `closely_s`, for how long they
        are to stay short.
        """

    def check(self) -> None:
        """Raises KeyboardInterrupt when an interrupt has arrived that is not held back."""

    def held_back(self) -> AbstractContextManager[None]:
        """Inside, interrupts do not raise."""

    def interrupted(self) -> bool:
        """Whether an interrupt has arrived, also one that is held back."""


class Listeners(Protocol):
    """Who listens where. Changes nothing but keep()."""

    def everything(self, protocol: models.Protocol) -> Mapping[Endpoint, tuple[Member, ...]]:
        """Every bound socket of the namespace, with the processes that hold it."""

    def on(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        """The sockets of these groups; without their holders, which is cheaper."""

    def on_ports(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        """The sockets of these groups, and of all others on their ports."""

    def watched(self, groups: Collection[Endpoint]) -> AbstractContextManager[bool]:
        """Inside, a socket that begins to listen on a port of these groups ends a pause of Clock.wait().

        The value is False where the kernel does not tell, of one of them at least.
        """

    def with_holders(self, sockets: Collection[BoundSocket], among: Collection[int] | None) -> tuple[Member, ...]:
        """The same with the processes that hold them, of all processes or of these."""

    def require_visible(self, members: Sequence[Member]) -> None:
        """Raises MissingCapability where a listener may have a holder that we are not permitted to see."""

    def kernel(self, wanted: Collection[int] | None = None) -> Snapshot | None:
        """Half-open connections, group and program of each listener; None where the kernel does not tell.

        Of these listeners only, and not which half-open connection is whose, is much cheaper.
        """

    def is_reuseport(self, member: Member) -> bool:
        """Whether it has SO_REUSEPORT."""

    def options(self, member: Member) -> ListenerOptions:
        """Raises Closed when it is closed."""

    def keep(self, members: Sequence[Member]) -> None:
        """Hold copies of listeners: whoever closes them, they stay open."""

    def let_go(self) -> None:
        """Close the copies."""


class Pins(Protocol):
    """The program, the generations and the counters of each group."""

    def attach(self, group: Endpoint, members: Sequence[Member]) -> AttachedProgram:
        """Attach our program and register the members; leaves what is there. Raises Conflict for a foreign one."""

    def running(self, group: Endpoint) -> Running:
        """Which program runs for it now."""

    def attach_again(self, group: Endpoint) -> None:
        """Put the pinned program in the place of another one."""

    def detach(self, group: Endpoint) -> None:
        """Give the group back to the kernel, and remove the pins."""

    def working(self, group: Endpoint) -> int:
        """The number of the working generation."""

    def generations(self, group: Endpoint) -> tuple[int, ...]:
        """Their numbers."""

    def cookies(self, group: Endpoint, generation: int) -> frozenset[int]:
        """The open listeners of a generation; none where there is no such generation."""

    def make(self, group: Endpoint, generation: int) -> None:
        """Make an empty generation."""

    def put(self, group: Endpoint, generation: int, members: Sequence[Member]) -> None:
        """Register listeners, and take them out of where they were."""

    def take_out(self, group: Endpoint, cookies: Collection[int]) -> None:
        """Take listeners out of all generations."""

    def remove(self, group: Endpoint, generation: int) -> None:
        """Remove a generation."""

    def switch(self, group: Endpoint, generation: int) -> float:
        """Make a generation the working one, end a canary. Returns the microseconds of the commit."""

    def share(self, group: Endpoint, generation: int, percent: float) -> None:
        """Give a generation beside the working one this share of the new connections; with generation 0 none."""

    def canary(self, group: Endpoint) -> tuple[int, float] | None:
        """Number and percent of the generation beside the working one."""

    def counters(self, group: Endpoint) -> Counters | None:
        """None where nothing of ours is pinned."""


class Processes(Protocol):
    """Processes, and the commands of the operator."""

    def tree(self) -> ProcessTree:
        """All of them, now."""

    def runs(self, process: ProcessIdentity) -> bool:
        """Whether it has not ended; cheaper than tree()."""

    def own_pid(self) -> int:
        """Of the tool."""

    def bystanders(self, tree: ProcessTree) -> set[int]:
        """Descendants of the tool that this run did not start."""

    def masters(self, pids: Collection[int]) -> list[int]:
        """The processes to stop so that these end: up to where no parent is one of them, or has plainly forked one."""

    def command(self, pid: int) -> str:
        """Its name, for a message."""

    def kin(self, pid: int) -> Kin:
        """Raises nothing: of a process that is gone all is unknown."""

    def waits(self, pid: int) -> bool | None:
        """Whether a process sleeps in a call that waits for connections; None for one that runs, or that hides it."""

    def are_held_up(self, side: Collection[ProcessIdentity]) -> bool:
        """Whether one of these has something to do and, since the last call, did not get to do it."""

    def marked(self, mark: int) -> set[int]:
        """The processes that a reload started, and what descends from them, by the mark that they inherit."""

    def start(self, command: Sequence[str] | str, output: Path | None, mark: int) -> Started:
        """A process that does nothing before release(). Raises UsageError when it cannot be started."""

    def release(self) -> None:
        """Let the started command run."""

    def exit_code(self) -> int | None:
        """Of the started command; None while it runs, and where another run started it."""

    def signal(self, process: ProcessIdentity, number: int) -> None:
        """Send a signal, with 0 only try. One that is gone is no error. Raises MissingCapability."""

    def run(self, command: str, timeout_s: float, doing: str) -> None:
        """Run a command of the operator by the shell. Raises ToolError when it fails or takes too long."""


class OldConnections(Protocol):
    """What the old side has accepted and still holds."""

    def count(self) -> int:
        """How many there are now."""

    def idle_s(self) -> tuple[float | None, float | None]:
        """The shortest and the longest time without data, of those last counted that were not none."""

    def end(self) -> int:
        """End those last counted that nobody else holds. Returns how many ended."""


class Traffic(Protocol):
    """Connections of the tool's own, what the kernel counts of all, and what it does with them."""

    def begin(self, groups: Sequence[Endpoint], kept: Sequence[Endpoint]) -> None:
        """Count resets from now on. Raises UsageError where --health-url leads to none of the groups that are kept."""

    def probe(self, group: Endpoint, steered: bool) -> None:
        """Leave a connection to be accepted; `steered` sends it to the canary generation."""

    def ask(self, timeout_s: float, steered: bool) -> None:
        """Ask --health-url. Raises ToolError for every answer but 2xx and 3xx, and for none in time."""

    def mib(self) -> TcpCounters:
        """The counters of the namespace."""

    def resets(self) -> Resets | None:
        """The resets on the ports of the reload since this run began; None where they cannot be seen."""

    def resets_of(self, side: Collection[ProcessIdentity]) -> SideResets | None:
        """Those that these processes brought about; None where they cannot be seen."""

    def migrate_req(self) -> str:
        """net.ipv4.tcp_migrate_req."""

    def set_migrate_req(self, value: str) -> None:
        """Raises MissingCapability, Unsupported."""

    def old_connections(self, groups: Sequence[Endpoint], side: Collection[ProcessIdentity]) -> OldConnections:
        """Raises Unsupported, MissingCapability."""


@record
class KeptFlows:
    """The recorded flows of a group at a moment of the clock."""

    seen_s: float
    flows: tuple[RawFlow, ...]


class Datagrams(Protocol):
    """UDP sockets and flows, and datagrams of the tool's own."""

    def sockets(self) -> Mapping[int, UdpInfo]:
        """Every bound UDP socket, by cookie; none where the kernel does not tell."""

    def last_seen(self, cookie: int) -> UdpInfo | None:
        """A socket as it was at the last look at which it was open."""

    def watch(self, cookies: Collection[int]) -> None:
        """Count what these sockets send from now on. Raises Unsupported, MissingCapability."""

    def sent(self) -> Mapping[int, Sent]:
        """What the watched sockets have sent."""

    def barrier(self) -> None:
        """Return when no datagram is on its way that an earlier choice directed."""

    def flow_mode(self, group: Endpoint) -> FlowMode | None:
        """What the group keeps together; None where nothing of ours is attached."""

    def flows(self, group: Endpoint) -> Iterable[RawFlow]:
        """The recorded flows of a group."""

    def open_slots(self, group: Endpoint, generation: int) -> Collection[int]:
        """The slots of a generation whose sockets are open: a recorded flow names its slot."""

    def keep_flows(self, group: Endpoint, now_s: float) -> None:
        """Look at the flows, and keep for kept_flows() what was seen."""

    def kept_flows(self, group: Endpoint) -> KeptFlows | None:
        """What keep_flows() saw last, in this process."""

    def connection_ids(self, group: Endpoint) -> int | None:
        """How many QUIC connection IDs are known; None where the group keeps none."""

    def is_crowded(self, group: Endpoint) -> bool:
        """Whether so many flows or connection IDs are known that the kernel may forget some that are in use."""

    def connected(self, group: Endpoint) -> Collection[BoundSocket]:
        """The sockets of the group's address and port that are connected to one client, whoever holds them."""

    def offer(self, group: Endpoint, count: int) -> None:
        """Send empty datagrams to the new generation, each from a port of its own."""

    def ask(self, group: Endpoint, payload: bytes, timeout_s: float) -> None:
        """Send a datagram to the new generation until an answer comes. Raises ToolError when none does in time."""


class Gap(Protocol):
    """The copies of UDP sockets over the time in which nobody reads them (--run)."""

    def check(self, group: Endpoint) -> None:
        """Raises Unsupported, MissingCapability where a datagram cannot be sent to a group again. It tries."""

    def park(self, member: Member) -> Member:
        """A socket of the tool's own in the group of a listener; Listeners.let_go() closes it. Raises ToolError."""

    def buffers(self, members: Sequence[Member]) -> tuple[int, ...]:
        """The receive buffer of each, bytes."""

    def resize(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        """Set them."""

    def give(self, group: Endpoint, cookie: int) -> tuple[int, int]:
        """Take some datagrams out of one of the copies, and send them to the group again.

        Returns how many were taken, and how many of them were sent.
        """


class Journal(Protocol):
    """Where the state is saved."""

    def write(self, state: ReloadState) -> None:
        """Replace what is there. Raises ToolError."""

    def last(self) -> ReloadState | None:
        """The state that was last given to write(), whether that failed or not."""

    def remove(self) -> None:
        """The reload has come to an orderly end."""

    def leave(self, group: Endpoint, last: LastReload) -> None:
        """Keep what became of the reload for those who look at the group later. Raises ToolError."""


class Tell(Protocol):
    """What a reload tells while it runs. Nothing that fails here matters."""

    def begin(self, step: str) -> None:
        """A step begins."""

    def end(self, step: Step) -> None:
        """A step ended."""

    def note(self, message: str) -> None:
        """Something to know."""

    def warn(self, message: str) -> None:
        """Something to worry about."""


@record
class World:
    """All of it."""

    clock: Clock
    listeners: Listeners
    pins: Pins
    processes: Processes
    traffic: Traffic
    datagrams: Datagrams
    gap: Gap
    journal: Journal
    tell: Tell
    queues: QueueLog = field(default_factory=QueueLog)
