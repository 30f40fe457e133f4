"""What a bench has measured."""

from __future__ import annotations

from dataclasses import dataclass


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
