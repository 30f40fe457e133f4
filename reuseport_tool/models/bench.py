"""What the benches measured."""

from __future__ import annotations

from reuseport_tool.models.proof import Resets
from reuseport_tool.record import record


@record
class Spread:
    """A median over rounds with its quartiles, in the unit of its field."""

    median: float
    """The median."""
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""


@record
class SelectArm:
    """One arm of `bench select`, over all rounds."""

    program: str
    """`none`, `bench_pass`, `bench_select` or `hash`."""
    listeners: int
    """Listeners in the group."""
    connections_per_s: float
    """Median over the rounds, by wall clock. One client thread on one CPU."""
    relative: Spread
    """Connections per second, divided by those of the round's arm without a program, by wall clock."""
    cpu_relative: Spread
    """The same by CPU time of the thread, which excludes other work of the machine. Where the kernel has
    CONFIG_IRQ_TIME_ACCOUNTING, it also excludes the SYN and its program."""
    ns_per_run: float | None
    """By the kernel's BPF statistics, in rounds of their own; null without a program."""
    ns_relative: float | None
    """`ns_per_run`, divided by that of `bench_select` with the same number of listeners."""
    runs_per_connection: float | None
    """How often the program ran, by the same statistics."""


@record
class BenchSelect:
    """What `bench select` measured."""

    kernel: str
    """The kernel's release."""
    rounds: int
    """Rounds of the measurement of speed."""
    connections_per_round: int
    """Connections in one round of one arm."""
    statistics_rounds: int
    """Rounds of the same size that follow, for `ns_per_run`."""
    arms: tuple[SelectArm, ...]
    """One entry for each program and number of listeners."""
    duration_s: float
    """Duration of everything."""


@record
class UdpArm:
    """One arm of `bench udp`, over all rounds."""

    program: str
    """`-` for no program, or what the program keeps together: `none`, `address`, `quic`."""
    flows: int
    """Flows whose datagrams take turns at random."""
    datagrams_per_s: float
    """Median over the rounds, by wall clock, from a client to the socket. One client on one CPU."""
    relative: Spread
    """Datagrams per second, divided by those of the round's arm without a program."""
    ns_per_run: float | None
    """By the kernel's BPF statistics, in rounds of their own; null without a program."""
    ns_relative: float | None
    """`ns_per_run`, divided by that of `none`."""


@record
class BenchUdp:
    """What `bench udp` measured."""

    kernel: str
    """The kernel's release."""
    rounds: int
    """Rounds of the measurement of speed."""
    datagrams_per_round: int
    """Datagrams in one round of one arm."""
    statistics_rounds: int
    """Rounds of the same size that follow, for `ns_per_run`."""
    arms: tuple[UdpArm, ...]
    """One entry for each program and number of flows."""
    duration_s: float
    """Duration of everything."""


@record
class SocketsArm:
    """One way to list sockets, over all rounds."""

    name: str
    """`walk`: the iterator, into records of this process. `list`: the same with filters, text and processes.
    `sockets`: the whole command. `ss`: `ss -tan` or `ss -uan`. `ss -p`: that with processes."""
    milliseconds: float
    """Median wall time."""
    relative: Spread
    """Wall time, divided by that of `ss` in the same round. Below 1 is faster."""


@record
class SocketsSize:
    """All ways to list one number of sockets."""

    protocol: str
    """`tcp` or `udp`."""
    sockets: int
    """Sockets in the network namespace, by the kernel's count."""
    arms: tuple[SocketsArm, ...]
    """One entry for each way."""


@record
class BenchSockets:
    """What `bench sockets` measured."""

    kernel: str
    """The kernel's release."""
    ss: str
    """Version of ss."""
    rounds: int
    """Rounds of each arm."""
    sizes: tuple[SocketsSize, ...]
    """One entry for each protocol and number of sockets."""
    duration_s: float
    """Duration of everything."""


@record
class FramingArm:
    """One way to wait for frames of one size, over all rounds."""

    name: str
    """`off`; `rcvlowat`: the application sets it once to the size of all frames; `native`; `solo`."""
    wakeups_per_frame: float
    """Returns of epoll_wait at the receiver."""
    syscalls_per_frame: float
    """System calls of the receiver: epoll_wait, recv, setsockopt, and the send of the answer."""
    cpu_us_per_frame: float
    """CPU time of both processes, including the kernel's work for them."""
    cpu_relative: Spread
    """CPU time per frame, divided by that of `off` in the same round."""
    frames_per_s: float
    """Median over the rounds."""
    speed_relative: Spread
    """Frames per second, divided by those of `off` in the same round."""
    p50_us: float
    """Median time from the first send of a frame to its answer."""
    p99_us: float
    """99th percentile of that time."""


@record
class FramingSize:
    """All ways to wait for frames of one size."""

    size: int
    """Bytes of a frame."""
    segments: int
    """Pieces that a frame is sent in."""
    frames: int
    """Frames in each round."""
    arms: tuple[FramingArm, ...]
    """One entry for each way."""


@record
class BenchRpcFraming:
    """What `bench rpc-framing` measured."""

    kernel: str
    """The kernel's release."""
    rounds: int
    """Rounds of each arm."""
    cpus: int
    """1: server and client share a CPU. 2: each has its own."""
    sizes: tuple[FramingSize, ...]
    """One entry for each size and number of pieces."""
    duration_s: float
    """Duration of everything."""


@record
class ReloadArm:
    """One way to replace a server under load, over all rounds. An arm that was not measured has `detail`, and
    everything else is 0 or null."""

    name: str
    """`plain`: the new server starts, then the old one gets SIGTERM. `accept-drain`: the old one first accepts until
    EAGAIN. `haproxy -sf`. `haproxy -x`: the descriptors are passed. `sysctl`: plain with `net.ipv4.tcp_migrate_req`.
    `bpf-drain`, `migrate`: `reload` with the strategy `drain` or `migrate`."""
    connections: int = 0
    """Connections that the clients began in all rounds: the sum of the next five."""
    answered: int = 0
    """The whole answer came."""
    refused: int = 0
    """The connect was refused."""
    reset: int = 0
    """The connection was reset."""
    unanswered: int = 0
    """The connection was closed before the whole answer was there."""
    timed_out: int = 0
    """No answer came in time."""
    migrated: int = 0
    """Connections that the kernel moved to another listener (TCPMigrateReqSuccess), in all rounds."""
    resets: Resets | None = None
    """What the kernel itself counted as reset in all rounds; null where it does not let the tool see that."""
    lost: Spread | None = None
    """Connections of one reload that were not answered."""
    longest_wait_ms: Spread | None = None
    """The longest time from connect() to the first byte during one reload."""
    duration_s: Spread | None = None
    """Duration of one reload, from the start of the new server until the old process has ended."""
    detail: str = ""
    """Why the arm was not measured."""


@record
class CloseSize:
    """close(2) of a group's last old listener, in which the kernel moves what is queued."""

    queued: int
    """Connections in its accept queue."""
    program_us: Spread
    """Duration of the system call with the tool's program on the group."""
    minimal_us: Spread
    """The same with the smallest program."""
    sysctl_us: Spread
    """The same without a program, with `net.ipv4.tcp_migrate_req`."""
    program_us_per_connection: float
    """Median of `program_us`, divided by `queued`."""
    sysctl_us_per_connection: float
    """Median of `sysctl_us`, divided by `queued`."""
    relative: Spread
    """The tool's program against the sysctl in the same round, by wall clock."""
    cpu_relative: Spread
    """The same by CPU time."""
    minimal_relative: Spread
    """The smallest program against the sysctl, by wall clock: the kernel's cost of running any program."""
    over_minimal: Spread
    """The tool's program against the smallest program, by wall clock: what the tool itself costs."""


@record
class BenchReload:
    """What `bench reload` measured."""

    kernel: str
    """The kernel's release."""
    rounds: int
    """Rounds of each arm."""
    clients: int
    """Connections at a time. Half of them send 50 ms after they have connected."""
    arms: tuple[ReloadArm, ...]
    """One entry for each way to reload."""
    close_rounds: int
    """Rounds of each close(2)."""
    closes: tuple[CloseSize, ...]
    """One entry for each queue length."""
    duration_s: float
    """Duration of everything."""


@record
class SpeedFigure:
    """One command of `bench speed`, as a whole process with the cache of programs filled."""

    name: str
    """`imports` (python -c 'import click, rich.console'), or a command; of many listeners where it says so."""
    duration_s: float
    """Median over the rounds; of many listeners, of the one time that it ran."""
    relative: Spread | None
    """Divided by the time of `imports` in the same round; null for `imports` and for many listeners."""


@record
class BenchSpeed:
    """What `bench speed` measured."""

    kernel: str
    """The kernel's release."""
    rounds: int
    """Rounds of the commands for a small group."""
    workers: int
    """Processes of the large server."""
    addresses: int
    """Addresses, and so groups, of the large server; each process listens on each."""
    figures: tuple[SpeedFigure, ...]
    """One entry for each command."""
    duration_s: float
    """Duration of everything."""
