"""What the program costs when a new connection chooses its listener.

All arms use the very same listeners; only the program of their group changes. One thread, held on one
CPU, opens and accepts connections over loopback, where the SYN is processed inside connect(2): the
measured time has exactly one selection for each connection. The client closes with a reset, so that no
TIME_WAIT is left to slow down the next one.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from reuseport_tool.bench.spread import spread
from reuseport_tool.errors import NotFound, ToolError, Unsupported
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import bpf, loopback, netns, program, sockets
from reuseport_tool.kernel import rlimit as room
from reuseport_tool.kernel.program import AttachType, ProgramType
from reuseport_tool.models import BenchSelect, Policy, SelectArm
from reuseport_tool.record import record

LISTENERS = (1, 16, 256)
STATISTICS_ROUNDS = 10
NONE, PASS, SELECT, OURS = "none", "bench_pass", "bench_select", "hash"

_FIRST_PORT = 9000
_BACKLOG = 4096
_SPARE_FDS = 64
_BATCH = 128  # connections open at a time: with the listeners fewer descriptors than the usual limit of 1024
_WARM_UP = 16
_ACCEPT_TIMEOUT_S = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@record
class _Pace:
    """Time for one connection, nanoseconds."""

    wall_ns: float
    cpu_ns: float


@dataclass(kw_only=True)
class _Samples:
    """What one arm was measured as, one element a round."""

    paces: list[_Pace] = field(default_factory=list)
    ns_per_run: list[float] = field(default_factory=list)
    runs: int = 0
    connections: int = 0


@record
class _Bench:
    """Listeners of one group, the programs that take turns there, and what was measured."""

    port: int
    listeners: list[socket.socket]
    programs: dict[str, bpf.Program | None]
    ours: Scratch
    samples: dict[str, _Samples]

    def use(self, arm: str) -> None:
        wanted = self.programs[arm]
        if wanted is not None:
            sockets.attach_program(self.listeners[0].fileno(), wanted)
            return
        with contextlib.suppress(NotFound):
            sockets.detach_program(self.listeners[0].fileno())


def select(rounds: int, connections: int, on_round: Callable[[], None] = lambda: None) -> BenchSelect:
    """Measure no program, the two minimal programs and our `hash`, each with LISTENERS listeners.

    Args:
        rounds: how often each arm is measured, at least 2. The order within a round is random, from a
            fixed seed, so that neither drift nor a neighbour in the order favours an arm.
        connections: for each arm and round. Time: about 12 * (rounds + STATISTICS_ROUNDS) * connections * 30 us.
        on_round: called after each round, also the STATISTICS_ROUNDS ones.

    Raises:
        MissingCapability, ProgramRejected, Unsupported: from the namespace and from loading.
        ToolError: connections got lost, or the program did not decide each of them once.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(room.descriptors(sum(LISTENERS) + _BATCH + _SPARE_FDS))
        stack.enter_context(netns.throw_away())
        run_statistics().close()  # fail now rather than after the rounds
        benches = [_bench(stack, number) for number in LISTENERS]
        stack.enter_context(steady())
        order = random.Random(0)
        for _ in range(rounds):
            for bench in benches:
                _round(bench, connections, order)
            on_round()
        stack.enter_context(run_statistics())
        for _ in range(STATISTICS_ROUNDS):
            for bench in benches:
                _statistics_round(bench, connections, order)
            on_round()
    return BenchSelect(
        kernel=os.uname().release,
        rounds=rounds,
        connections_per_round=connections,
        statistics_rounds=STATISTICS_ROUNDS,
        arms=tuple(_summary(bench, arm) for bench in benches for arm in bench.programs),
        duration_s=round(time.perf_counter() - start, 2),
    )


def _bench(stack: ExitStack, number: int) -> _Bench:
    port = _FIRST_PORT + number
    listeners = loopback.listeners(stack, port, number, _BACKLOG)
    ours = Scratch(stack, Policy.HASH)
    # A socket is in one sockarray only, so bench_select takes the one of our generation.
    array = ours.add_generation(1, listeners)
    programs = {
        NONE: None,
        PASS: stack.enter_context(_load(PASS, {}, {})),
        SELECT: stack.enter_context(_load(SELECT, {"LISTENERS": number}, {"SOCKARRAY_FD": array.fd})),
        OURS: ours.program,
    }
    return _Bench(
        port=port, listeners=listeners, programs=programs, ours=ours, samples={arm: _Samples() for arm in programs}
    )


def run_statistics() -> bpf.Handle:
    """Run statistics, on until the handle is closed. Raises Unsupported, MissingCapability."""
    try:
        return bpf.enable_stats()
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise Unsupported("the kernel cannot count the runs of a program", hint="it came with Linux 5.8") from error
        raise bpf.translate(error, "enabling BPF statistics") from error


def _load(name: str, defines: dict[str, int], maps: dict[str, int]) -> bpf.Program:
    source = program.Source(path=program.bpf_dir() / "bench" / f"{name}.c", defines=defines, maps=tuple(maps))
    return program.load(source, name, ProgramType.SK_REUSEPORT, AttachType.NONE, maps)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """One CPU, and no garbage collector."""
    allowed, collects = os.sched_getaffinity(0), gc.isenabled()
    os.sched_setaffinity(0, {max(allowed)})
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        os.sched_setaffinity(0, allowed)


def _round(bench: _Bench, connections: int, order: random.Random) -> None:
    for arm in order.sample(list(bench.programs), len(bench.programs)):
        bench.use(arm)
        _connect_and_accept(bench, _WARM_UP)
        bench.samples[arm].paces.append(_pace(bench, connections))


def _pace(bench: _Bench, connections: int) -> _Pace:
    wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
    for done in range(0, connections, _BATCH):
        _connect_and_accept(bench, min(_BATCH, connections - done))
    return _Pace(
        wall_ns=(time.perf_counter_ns() - wall_ns) / connections,
        cpu_ns=(time.thread_time_ns() - cpu_ns) / connections,
    )


def _connect_and_accept(bench: _Bench, connections: int) -> None:
    address = bench.listeners[0].getsockname()
    clients = []
    for _ in range(connections):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        client.connect_ex(address)
        clients.append(client)
    deadline = time.monotonic() + _ACCEPT_TIMEOUT_S
    waiting = connections
    while waiting:
        waiting -= sum(_accept_all(listener) for listener in bench.listeners)
        if waiting and time.monotonic() > deadline:
            raise ToolError(f"{waiting} of {connections} connections over loopback did not arrive")
    for client in clients:
        client.close()


def _accept_all(listener: socket.socket) -> int:
    accepted = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            accepted += 1
    return accepted


def _statistics_round(bench: _Bench, connections: int, order: random.Random) -> None:
    for arm in order.sample(list(bench.programs), len(bench.programs)):
        running = bench.programs[arm]
        if running is None:
            continue
        bench.use(arm)
        selected = bench.ours.counters().selected
        before = running.info()
        _pace(bench, connections)
        after = running.info()
        runs = after.run_count - before.run_count
        if arm == OURS and bench.ours.counters().selected - selected != runs:
            raise ToolError(f"the program ran {runs} times, but its counters differ")
        _add_statistics(bench.samples[arm], connections, runs, after.run_time_ns - before.run_time_ns)


def _add_statistics(samples: _Samples, connections: int, runs: int, time_ns: int) -> None:
    if not runs:
        raise ToolError("the kernel counted no run of the program")
    samples.ns_per_run.append(time_ns / runs)
    samples.runs += runs
    samples.connections += connections


def _summary(bench: _Bench, arm: str) -> SelectArm:
    samples, base = bench.samples[arm], bench.samples[NONE]
    has_program = bool(samples.ns_per_run)
    pairs = list(zip(base.paces, samples.paces, strict=True))
    minimal = bench.samples[SELECT].ns_per_run
    per_run = zip(samples.ns_per_run, minimal, strict=True) if has_program else ()
    return SelectArm(
        program=arm,
        listeners=len(bench.listeners),
        connections_per_s=round(1e9 / statistics.median(pace.wall_ns for pace in samples.paces), 1),
        relative=spread([before.wall_ns / pace.wall_ns for before, pace in pairs], 4),
        cpu_relative=spread([before.cpu_ns / pace.cpu_ns for before, pace in pairs], 4),
        ns_per_run=round(statistics.median(samples.ns_per_run), 1) if has_program else None,
        ns_relative=round(statistics.median(ours / other for ours, other in per_run), 3) if has_program else None,
        runs_per_connection=round(samples.runs / samples.connections, 3) if has_program else None,
    )
