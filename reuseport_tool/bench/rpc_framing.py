"""What AutoLOWAT saves, and costs: frames sent one after another, each answered, by arms that take turns.

The client is a child process, so that neither waits for the other's interpreter. Where the two run is fixed, because it
decides what a wake-up costs: on one CPU a switch, on two CPUs an interrupt that ends the other's idling. Plain sockets
are made before this process enters the cgroup: a socket stays in the cgroup that it was made in.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import NamedTuple

from reuseport_tool.autolowat.attachment import AttachmentPlan
from reuseport_tool.bench.spread import percentile, relative
from reuseport_tool.check import framing_lab
from reuseport_tool.check.framing_lab import Pair, rpc_frame
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup, netns
from reuseport_tool.models import BenchRpcFraming, Engine, FramingArm, FramingSize
from reuseport_tool.record import record

# Bytes of a frame, segments that it is sent in, frames in a round
SIZES = (
    *((64, 1, 300), (64, 3, 200), (1024, 1, 300), (1024, 4, 150)),
    *((16 << 10, 1, 200), (16 << 10, 8, 100), (64 << 10, 1, 100), (64 << 10, 32, 40)),
    *((1 << 20, 1, 15), (1 << 20, 64, 10)),
)
OFF, RCVLOWAT = "off", "rcvlowat"
_ANSWER = bytes(8)
_PORTS = {Engine.SOLO: 9001, Engine.NATIVE: 9002}
_TIMEOUT_S = 30.0
_CHUNK = 1 << 21


class _Task(NamedTuple):
    arm: str
    size: int
    segments: int
    frames: int


@record
class _Sample:
    """One arm in one round. CPU time of both ends in seconds, latencies in nanoseconds."""

    wakeups: int
    syscalls: int
    cpu_s: float
    wall_s: float
    latencies_ns: list[int]


def bench(rounds: int, cpus: int, step: Callable[[int, int], None]) -> BenchRpcFraming:
    """Measure every arm with every size, `rounds` times, in random order.

    Args:
        cpus: 1 for client and server on the same, 2 for each on its own.
        step: called with the number of rounds that are done and of all.

    Raises:
        Unsupported, MissingCapability: from the programs, the namespace and the cgroup.
        ToolError: a frame was not answered in time, or there are not so many CPUs.
    """
    begin = time.monotonic()
    allowed = sorted(os.sched_getaffinity(0))
    if cpus > len(allowed):
        raise ToolError(f"{cpus} CPUs are needed, and this process may use {len(allowed)}")
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, allowed[:1])
        pairs = _pairs(stack)
        client = stack.enter_context(_client({name: pair.client for name, pair in pairs.items()}, allowed[cpus - 1]))
        samples = _rounds(rounds, pairs, client, step)
    sizes = tuple(
        FramingSize(
            size=size,
            segments=segments,
            frames=frames,
            arms=_summaries({arm: samples[_Task(arm, size, segments, frames)] for arm in pairs}),
        )
        for size, segments, frames in SIZES
    )
    return BenchRpcFraming(
        kernel=os.uname().release, rounds=rounds, cpus=cpus, sizes=sizes, duration_s=time.monotonic() - begin
    )


def _pairs(stack: ExitStack) -> dict[str, Pair]:
    stack.enter_context(netns.throw_away())
    pairs = {name: stack.enter_context(framing_lab.pair()) for name in (OFF, RCVLOWAT)}
    folder = stack.enter_context(cgroup.throw_away())
    engines = [Engine.SOLO] if kernel.missing_for_native() else [Engine.NATIVE, Engine.SOLO]
    for engine in engines:
        plan = AttachmentPlan(engine=engine, framing="rpc", ports=(_PORTS[engine],))
        stack.enter_context(framing_lab.programs_at(folder, plan))
    for engine in engines:
        pairs[engine] = stack.enter_context(framing_lab.pair(port=_PORTS[engine]))
    return pairs


def _rounds(
    rounds: int, pairs: dict[str, Pair], client: Connection, step: Callable[[int, int], None]
) -> dict[_Task, list[_Sample]]:
    tasks = [_Task(arm, *size) for size in SIZES for arm in pairs]
    samples: dict[_Task, list[_Sample]] = {task: [] for task in tasks}
    order = random.Random(0)
    for number in range(rounds + 1):
        for task in order.sample(tasks, len(tasks)):
            sample = _measure(task, pairs[task.arm], client)
            if number:  # in the first one the buffers grow
                samples[task].append(sample)
        step(number, rounds)
    return samples


def _measure(task: _Task, pair: Pair, client: Connection) -> _Sample:
    lowat = task.size if task.arm == RCVLOWAT else 1
    if task.arm in (OFF, RCVLOWAT):
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, lowat)
    cpu, begin = _cpu_s(), time.perf_counter()
    client.send(task)
    wakeups, syscalls = _serve(pair, task)
    wall_s, cpu_s = time.perf_counter() - begin, _cpu_s() - cpu
    if not client.poll(_TIMEOUT_S):
        raise ToolError("the client of the bench does not answer")
    theirs, latencies = client.recv()
    return _Sample(wakeups=wakeups, syscalls=syscalls, cpu_s=cpu_s + theirs, wall_s=wall_s, latencies_ns=latencies)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _serve(pair: Pair, task: _Task) -> tuple[int, int]:
    """Answer each frame when it is there. Returns wake-ups and system calls."""
    wakeups = syscalls = 0
    lowered = False
    sock, poll, take = pair.server, pair.level.poll, pair.server.recv
    for _ in range(task.frames):
        missing = task.size
        while missing:
            if not poll(_TIMEOUT_S):
                raise ToolError(f"arm {task.arm}: a frame of {task.size} bytes stalled with {missing} to come")
            wakeups += 1
            missing -= len(take(_CHUNK))
            syscalls += 2
            if missing and task.arm == RCVLOWAT:
                # The kernel woke us early, for want of room: with the mark as it is the rest would never do.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, missing)
                syscalls += 1
                lowered = True
        if lowered:
            lowered = False
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, task.size)
            syscalls += 1
        sock.send(_ANSWER)
        syscalls += 1
    return wakeups, syscalls


@contextlib.contextmanager
def _client(ends: dict[str, socket.socket], cpu: int) -> Iterator[Connection]:
    """The child that sends; it is ended with the block."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_send_all, args=(theirs, ends, cpu), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.terminate()
        child.join()


def _send_all(orders: Connection, ends: dict[str, socket.socket], cpu: int) -> None:
    os.sched_setaffinity(0, [cpu])
    with contextlib.suppress(EOFError):
        while True:
            task = orders.recv()
            used = _cpu_s()
            latencies = _send(ends[task.arm], task)
            orders.send((_cpu_s() - used, latencies))


def _send(sock: socket.socket, task: _Task) -> list[int]:
    frame = memoryview(rpc_frame(task.size // 2, task.size - task.size // 2 - 8))
    pieces = [
        frame[task.size * at // task.segments : task.size * (at + 1) // task.segments] for at in range(task.segments)
    ]
    latencies = []
    for _ in range(task.frames):
        begin = time.perf_counter_ns()
        for piece in pieces:
            sock.sendall(piece)
        sock.recv(len(_ANSWER), socket.MSG_WAITALL)
        latencies.append(time.perf_counter_ns() - begin)
    return latencies


def _summaries(samples: dict[str, list[_Sample]]) -> tuple[FramingArm, ...]:
    return tuple(_summary(name, taken, samples[OFF]) for name, taken in samples.items())


def _summary(name: str, taken: list[_Sample], base: list[_Sample]) -> FramingArm:
    frames = sum(len(sample.latencies_ns) for sample in taken)
    latencies_us = [ns / 1000 for sample in taken for ns in sample.latencies_ns]
    return FramingArm(
        name=name,
        wakeups_per_frame=sum(sample.wakeups for sample in taken) / frames,
        syscalls_per_frame=sum(sample.syscalls for sample in taken) / frames,
        cpu_us_per_frame=statistics.median(sample.cpu_s / len(sample.latencies_ns) for sample in taken) * 1e6,
        cpu_relative=relative([sample.cpu_s for sample in taken], [sample.cpu_s for sample in base], 4),
        frames_per_s=statistics.median(len(sample.latencies_ns) / sample.wall_s for sample in taken),
        speed_relative=relative([sample.wall_s for sample in base], [sample.wall_s for sample in taken], 4),
        p50_us=percentile(latencies_us, 50),
        p99_us=percentile(latencies_us, 99),
    )
