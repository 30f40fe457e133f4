"""The records that cross layers. The JSON output is made of exactly these (docs/json.md)."""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field

from reuseport_tool.errors import UsageError


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True)
class Endpoint:
    """What a group is bound to: protocol, local address, port and perhaps a device.

    `address` None means every address and `port` 0 every port: that covers groups but never is one.
    """

    protocol: Protocol
    address: str | None
    port: int
    device: str | None = None

    def __str__(self) -> str:
        if self.address is None:
            return f"{self.protocol}://*:{self.port}"
        host = f"{self.address}%{self.device}" if self.device else self.address
        return f"{self.protocol}://[{host}]:{self.port}" if self.is_ipv6 else f"{self.protocol}://{host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return self.address is not None and ":" in self.address

    def covers(self, group: Endpoint) -> bool:
        """Whether a group is one of those that this endpoint, as typed, means."""
        return (
            self.protocol is group.protocol
            and self.port in (0, group.port)
            and self.address in (None, group.address)
            and self.device in (None, group.device)
        )


_ENDPOINT = re.compile(
    r"(?:(?P<protocol>[a-zA-Z]+)://)?"
    r"(?:(?:\[(?P<v6>[^\]%]*)(?:%(?P<v6dev>[^\]]+))?\]|(?P<v4>[^\[\]:%]*)(?:%(?P<v4dev>[^:]+))?):)?"
    r"(?P<port>[^:\[\]]+)"
)


def parse_endpoint(text: str) -> Endpoint:
    """Read `PORT`, `ADDR:PORT` or `[ADDR6]:PORT`, with an optional `tcp://` or `udp://` in front.

    Raises:
        UsageError: what is wrong with the text, and an example of what is right.
    """
    match = _ENDPOINT.fullmatch(text.strip())
    hint = "write PORT, ADDR:PORT or [ADDR6]:PORT, for example 8080, 10.0.0.1:80 or udp://[::]:53"
    if match is None:
        raise UsageError(f"not an endpoint: {text!r}", hint=hint)
    protocol = match["protocol"] or "tcp"
    if protocol.lower() not in tuple(Protocol):
        raise UsageError(f"unknown protocol {protocol!r} in {text!r}", hint="the protocol is tcp or udp")
    address = match["v6"] if match["v6"] is not None else match["v4"]
    if address == "*":
        address = None
    return Endpoint(
        Protocol(protocol.lower()),
        None if address is None else _parse_address(address, text, hint, version=6 if match["v6"] is not None else 4),
        _parse_port(match["port"], text),
        match["v6dev"] or match["v4dev"],
    )


def _parse_address(address: str, text: str, hint: str, version: int) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(f"not an IP address: {address!r} in {text!r}", hint=hint) from None
    if parsed.version != version:
        raise UsageError(f"an IPv{parsed.version} address in the place of IPv{version}: {text!r}", hint=hint)
    return str(parsed)


def _parse_port(port: str, text: str) -> int:
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise UsageError(f"not a port: {port!r} in {text!r}", hint="a port is a number from 1 to 65535")
    return int(port)


class Policy(enum.StrEnum):
    """How a new connection is given to a listener of the working generation."""

    HASH = "hash"
    ROUND_ROBIN = "round-robin"
    CPU = "cpu"
    SOURCE_IP = "source-ip"


class Strategy(enum.StrEnum):
    """How a reload moves the connections that nobody has accepted yet."""

    MIGRATE = "migrate"
    SYSCTL = "sysctl"
    DRAIN = "drain"


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


@dataclass(frozen=True)
class Feature:
    """One probe. `available` is None when the probe could not tell."""

    name: str
    available: bool | None
    detail: str
    minimum_kernel: str


@dataclass(frozen=True)
class Capability:
    """One capability of the process, and the verbs' jobs that take it."""

    name: str
    held: bool
    used_for: str


@dataclass(frozen=True)
class Doctor:
    """`ok` says that the strategy `migrate` works here and wakes who sleeps on the new listener; the
    detail of each feature says the rest. `missing` names the features that keep `ok` from being true."""

    kernel: str
    ok: bool
    missing: tuple[str, ...]
    features: tuple[Feature, ...]
    capabilities: tuple[Capability, ...]


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


class Way(enum.StrEnum):
    """The ways to reload that `check hot-reload` compares; see check/trial.py."""

    CLOSE = "close"
    ACCEPT_DRAIN = "accept-drain"
    FD_PASSING = "fd-passing"
    BPF_DRAIN = "bpf-drain"
    SYSCTL = "sysctl"
    BPF_MIGRATE = "bpf-migrate"


class ConnectionState(enum.StrEnum):
    """What a connection that nobody has accepted yet can be when its listener closes.

    ESTABLISHED and SYN_RECV (TCP Fast Open) wait in the accept queue. NEW_SYN_RECV waits for the
    final ACK, and the kernel notices that the listener is gone when that comes, or when the timer of
    the SYN+ACK fires.
    """

    ESTABLISHED = "established"
    SYN_RECV = "syn_recv"
    NEW_SYN_RECV_ACK = "new_syn_recv_ack"
    NEW_SYN_RECV_TIMER = "new_syn_recv_timer"

    @property
    def half_open(self) -> bool:
        return self in (ConnectionState.NEW_SYN_RECV_ACK, ConnectionState.NEW_SYN_RECV_TIMER)


@dataclass(frozen=True)
class Case:
    """One cell of `check hot-reload`: `state` is a ConnectionState, `strategy` a Way.

    `duration_s` is from the start of the reload to the last client's answer or reset. `woken` says
    whether a server asleep in epoll_wait was woken by what reached it; None where nothing was to wake
    it.
    """

    state: str
    family: str
    strategy: str
    connections: int
    survived: int
    expected: str
    woken: bool | None
    duration_s: float
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Move:
    """Where the request that was queued on one listener was answered ("-": nowhere).

    `via` are the queues that it was in between: each but the last one was closed in its turn.
    """

    strategy: str
    queued_on: str
    via: tuple[str, ...]
    answered_by: str


@dataclass(frozen=True)
class Redistribution:
    """Listeners A, B (old) and C, D (new) hold one request each; A, then B is closed."""

    moves: tuple[Move, ...]
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class CheckHotReload:
    kernel: str
    ok: bool
    cases: tuple[Case, ...]
    redistribution: Redistribution
    duration_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A median over rounds with the first and third quartile. Without unit."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class SelectArm:
    """One arm of `bench select`, over all rounds.

    Attributes:
        program: none, bench_pass, bench_select or hash.
        connections_per_s: median over the rounds, by wall clock, one client thread on one CPU.
        relative: connections per second of the round, divided by those of its arm without a program
            with the same number of listeners, by wall clock.
        cpu_relative: the same by CPU time of the thread, which leaves out what else the machine did; and,
            where the kernel has CONFIG_IRQ_TIME_ACCOUNTING, the handling of the SYN with its program, too.
        ns_per_run: by the kernel's BPF statistics, in rounds of their own; None without a program.
        ns_relative: `ns_per_run` divided by that of bench_select with the same number of listeners.
        runs_per_connection: how often the program ran, from the same statistics.
    """

    program: str
    listeners: int
    connections_per_s: float
    relative: Ratio
    cpu_relative: Ratio
    ns_per_run: float | None
    ns_relative: float | None
    runs_per_connection: float | None


@dataclass(frozen=True)
class BenchSelect:
    """`statistics_rounds` of the same size follow the `rounds`; `duration_s` is that of everything."""

    kernel: str
    rounds: int
    connections_per_round: int
    statistics_rounds: int
    arms: tuple[SelectArm, ...]
    duration_s: float


class SocketState(enum.StrEnum):
    """The states of include/net/tcp_states.h from 1 on, and what CLOSE means for UDP."""

    ESTABLISHED = "established"
    SYN_SENT = "syn_sent"
    SYN_RECV = "syn_recv"
    FIN_WAIT1 = "fin_wait1"
    FIN_WAIT2 = "fin_wait2"
    TIME_WAIT = "time_wait"
    CLOSE = "close"
    CLOSE_WAIT = "close_wait"
    LAST_ACK = "last_ack"
    LISTEN = "listen"
    CLOSING = "closing"
    NEW_SYN_RECV = "new_syn_recv"
    UNCONNECTED = "unconnected"


@dataclass(frozen=True, slots=True)
class Socket:
    """One TCP or UDP socket.

    Attributes:
        state: a SocketState.
        local, remote: `ADDR:PORT` or `[ADDR6]:PORT`; `remote` is None for an unconnected one.
        pid, command: the topmost process that holds it; None where none does (not accepted yet,
            TIME_WAIT, closed by its program), or where it ended meanwhile.
        inode: None without a descriptor.
        age_s: of a request socket, from its first SYN+ACK; the kernel keeps no time of birth of others.
        idle_s: of a TCP connection, since data last came or went, or since the handshake; None for others.
        receive_queue, send_queue: bytes; None for a listener and for sockets without queues.
        accept_queue, backlog: connections; None for all but listeners.
        generation: of the attached group that it belongs to; None where that cannot be told.
    """

    protocol: str
    state: str
    local: str
    remote: str | None
    cookie: int
    pid: int | None
    command: str | None
    uid: int
    inode: int | None
    age_s: float | None
    idle_s: float | None
    receive_queue: int | None
    send_queue: int | None
    accept_queue: int | None
    backlog: int | None
    generation: int | None


@dataclass(frozen=True)
class Sockets:
    """Those of the `walked` sockets that match.

    `exactly_once` says whether the kernel promises, for all walked protocols, that a socket that lives through
    the walk is seen once; None where it does not tell. `walk_s` is the time of the walk in the kernel.
    """

    netns: str
    protocols: tuple[str, ...]
    exactly_once: bool | None
    walked: int
    walk_s: float
    sockets: tuple[Socket, ...]


@dataclass(frozen=True)
class Ending:
    """What became of a chosen socket.

    `result` is would-end (dry run), ended, disconnected (UDP: its program got the error, and it stays bound
    until that closes it), gone (it had closed or changed meanwhile) or refused.
    """

    socket: Socket
    result: str
    detail: str = ""


@dataclass(frozen=True)
class Destroy:
    """`engine` is bpf or netlink. `listeners`, `request_sockets` and `time_wait` count those that matched
    and were left alone."""

    netns: str
    engine: str
    dry_run: bool
    exactly_once: bool | None
    endings: tuple[Ending, ...]
    listeners: int
    request_sockets: int
    time_wait: int


@dataclass(frozen=True)
class SocketsArm:
    """One way to list, over all rounds. `relative` is its wall time divided by that of ss in the same round.

    `name` is `walk` (our iterator into records of this process), `list` (the same with filters, text of
    addresses and processes), `sockets` (the whole command), `ss`, or `ss -p` (with processes).
    """

    name: str
    milliseconds: float
    relative: Ratio


@dataclass(frozen=True)
class SocketsSize:
    """`sockets` is what the kernel counted in the namespace."""

    protocol: str
    sockets: int
    arms: tuple[SocketsArm, ...]


@dataclass(frozen=True)
class BenchSockets:
    kernel: str
    ss: str
    rounds: int
    sizes: tuple[SocketsSize, ...]
    duration_s: float


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


@dataclass(frozen=True)
class FramingCase:
    """One case of `check rpc-framing`. A stall is a frame that the reader had to be given by a deadline."""

    name: str
    family: str
    frames: int
    wakeups: int
    stalls: int
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class CheckRpcFraming:
    kernel: str
    engine: str
    ok: bool
    cases: tuple[FramingCase, ...]
    duration_s: float


@dataclass(frozen=True)
class FramingArm:
    """One way to wait for frames of one size, over all rounds.

    Attributes:
        name: off, rcvlowat (set once by the application, to the size of all frames), native or paired.
        wakeups_per_frame: returns of epoll_wait at the receiver.
        syscalls_per_frame: of the receiver: epoll_wait, recv, and the send of the answer.
        cpu_us_per_frame: CPU time of both processes, the kernel's work for them included.
        cpu_relative, speed_relative: CPU per frame and frames per second, divided by those of `off` in the round.
        p50_us, p99_us: from the first send of a frame to its answer.
    """

    name: str
    wakeups_per_frame: float
    syscalls_per_frame: float
    cpu_us_per_frame: float
    cpu_relative: Ratio
    frames_per_s: float
    speed_relative: Ratio
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class FramingSize:
    """Frames of `size` bytes, sent in `segments` pieces, `frames` in each round."""

    size: int
    segments: int
    frames: int
    arms: tuple[FramingArm, ...]


@dataclass(frozen=True)
class BenchRpcFraming:
    kernel: str
    rounds: int
    cpus: int
    sizes: tuple[FramingSize, ...]
    duration_s: float


@dataclass(frozen=True)
class Spread:
    """A median over rounds with the first and third quartile, in the unit of its field."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ReloadArm:
    """One way to replace a server under load, over all rounds.

    Attributes:
        name: plain, accept-drain, sysctl, bpf-drain, migrate, haproxy -sf or haproxy -x.
        connections: begun by the clients in all rounds: the sum of the accounts after it.
        answered, refused, reset, unanswered, timed_out: what became of them, as the clients saw it.
        migrated: how many of them the kernel moved to another listener (TCPMigrateReqSuccess).
        lost: connections of one reload that were not answered.
        longest_wait_ms: from connect(2) to the first byte, of those on their way during one reload.
        duration_s: of one reload, from the start of the new server until the old process has ended.
        detail: why the arm was not measured; everything else is 0 or None then.
    """

    name: str
    connections: int = 0
    answered: int = 0
    refused: int = 0
    reset: int = 0
    unanswered: int = 0
    timed_out: int = 0
    migrated: int = 0
    lost: Spread | None = None
    longest_wait_ms: Spread | None = None
    duration_s: Spread | None = None
    detail: str = ""


@dataclass(frozen=True)
class CloseSize:
    """close(2) of a group's last old listener with `queued` connections in its accept queue.

    Attributes:
        program_us, minimal_us, sysctl_us: duration of the system call with our program on the group, with the
            smallest program, and with net.ipv4.tcp_migrate_req and no program.
        program_us_per_connection, sysctl_us_per_connection: the medians divided by `queued`.
        relative, cpu_relative: our program to the sysctl in the same round, by wall clock and by CPU time.
        minimal_relative: the smallest program to the sysctl, by wall clock: what running any program takes.
    """

    queued: int
    program_us: Spread
    minimal_us: Spread
    sysctl_us: Spread
    program_us_per_connection: float
    sysctl_us_per_connection: float
    relative: Ratio
    cpu_relative: Ratio
    minimal_relative: Ratio


@dataclass(frozen=True)
class BenchReload:
    """`clients` are connections at a time; `close_rounds` is for the `closes`."""

    kernel: str
    rounds: int
    clients: int
    arms: tuple[ReloadArm, ...]
    close_rounds: int
    closes: tuple[CloseSize, ...]
    duration_s: float


@dataclass(frozen=True)
class ErrorReport:
    """What a failed command prints on stderr with --json."""

    code: int
    message: str
    hint: str | None
    log: str | None = field(default=None)
