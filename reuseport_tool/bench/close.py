"""How long close(2) of a listener takes that has connections in its accept queue: our program against the sysctl.

close(2) of a listener goes through its accept queue and puts each connection into the queue of another one before it
returns (inet_csk_listen_stop() in net/ipv4/inet_connection_sock.c). So the duration of this one system call is
the whole time in which the connections move, and right after it all of them are counted in the new queue.
The connections belong to a process of their own, which says what became of each.

The third arm is the smallest program there is, which selects nothing: what the kernel itself takes to run any
program for a migration (it allocates an sk_buff for each, reuseport_migrate_sock() in net/core/sock_reuseport.c).
All arms make the same system calls before the one that is timed; only the group that gets the program differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from reuseport_tool.bench.load import REQUEST, RESET_ON_CLOSE, TIMEOUT_S, Ledger
from reuseport_tool.bench.select import steady
from reuseport_tool.bench.spread import relative, spread
from reuseport_tool.errors import ToolError
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import bpf, diag, loopback, program, sockets, sysctl
from reuseport_tool.kernel.program import AttachType, ProgramType
from reuseport_tool.models import CloseSize, Policy, Protocol
from reuseport_tool.waiting import readable

QUEUED = (1, 16, 256, 1024, 4096)
PROGRAM, MINIMAL, SYSCTL = "program", "minimal", "sysctl"

_ADDRESS, _PORT, _OTHER_PORT = "127.0.0.1", 9000, 9001
SPARE_FDS = 64
_ANSWER = b"answered"
_ANSWER_S = 300.0  # for thousands of connections on a busy machine


@dataclass
class _Samples:
    """Microseconds, one element a round."""

    wall_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


class Crowd:
    """A child process with connections that wait. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def connect(self, count: int) -> None:
        """Open so many connections, and return when each has sent its request. Raises ToolError."""
        answer = self._ask(str(count))
        if answer != "ready":
            raise ToolError(f"{count} connections cannot be opened: {answer or 'their process ended'}")

    def ledger(self) -> Ledger:
        """Close all connections. Returns what became of them."""
        return Ledger(**json.loads(self._ask("account") or "{}"))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        if not readable(self._process.stdout, _ANSWER_S):
            raise ToolError("the process with the connections does not answer", hint="try again on an idle machine")
        return self._process.stdout.readline().strip()


@dataclass(frozen=True)
class _Bench:
    ours: Scratch
    minimal: bpf.Program
    crowd: Crowd

    def migrated(self) -> int:
        return self.ours.counters().migrated_established


def measure(sizes: Sequence[int], rounds: int, on_round: Callable[[], None]) -> tuple[CloseSize, ...]:
    """Measure in the calling thread's network namespace, which is to be a throw-away one.

    The caller has room for max(sizes) + SPARE_FDS open files.

    Args:
        rounds: how often each arm is measured with each size, at least 2, in an order that changes.

    Raises:
        MissingCapability, ProgramRejected, Unsupported: from loading, or for want of the sysctl.
        ToolError: a connection was lost, or was not in the new queue when close(2) returned.
    """
    samples = {size: {arm: _Samples() for arm in (PROGRAM, MINIMAL, SYSCTL)} for size in sizes}
    order = random.Random(0)
    with ExitStack() as stack:
        sysctl.write("net.core.somaxconn", str(max(sizes)))
        bench = _Bench(Scratch(stack, Policy.HASH), stack.enter_context(_minimal()), stack.enter_context(Crowd()))
        stack.enter_context(steady())
        for _ in range(rounds):
            for size, arms in samples.items():
                for arm in order.sample(list(arms), len(arms)):
                    _turn(bench, size, arm, arms[arm])
            on_round()
    return tuple(_summary(size, **arms) for size, arms in samples.items())


def _minimal() -> bpf.Program:
    source = program.Source(path=program.bpf_dir() / "bench" / "bench_pass.c")
    return program.load(source, "bench_pass", ProgramType.SK_REUSEPORT, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE)


def _turn(bench: _Bench, size: int, arm: str, samples: _Samples) -> None:
    """Queue connections on an old listener, let a new one join, close the old one."""
    with ExitStack() as stack:
        stack.enter_context(sysctl.changed(sysctl.TCP_MIGRATE_REQ, "1" if arm == SYSCTL else "0"))
        old, other_old = (stack.enter_context(loopback.listener(port, size)) for port in (_PORT, _OTHER_PORT))
        bench.crowd.connect(size)
        new, other_new = (stack.enter_context(loopback.listener(port, size)) for port in (_PORT, _OTHER_PORT))
        _attach(bench.ours, *((old, new) if arm == PROGRAM else (other_old, other_new)))
        sockets.attach_program((old if arm == MINIMAL else other_old).fileno(), bench.minimal)
        _expect(old, size, "before the close")
        migrated = bench.migrated()
        wall_us, cpu_us = _timed_close(old)
        _expect(new, size, "when close(2) returned")
        if bench.migrated() - migrated != (size if arm == PROGRAM else 0):
            raise ToolError("the program did not move each connection once")
        _answer_all(new, size)
        ledger = bench.crowd.ledger()
        if ledger.answered != size or ledger.lost:
            raise ToolError(f"of {size} connections {ledger.answered} were answered")
    samples.wall_us.append(wall_us)
    samples.cpu_us.append(cpu_us)


def _attach(ours: Scratch, old: socket.socket, new: socket.socket) -> None:
    ours.add_generation(1, [old])
    ours.add_generation(2, [new])
    sockets.attach_program(old.fileno(), ours.program)


def _timed_close(listener: socket.socket) -> tuple[float, float]:
    """Microseconds by wall clock and by CPU time of this thread."""
    fd = listener.detach()
    cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
    os.close(fd)
    wall_ns = time.perf_counter_ns() - wall_ns
    return wall_ns / 1000, (time.thread_time_ns() - cpu_ns) / 1000


def _expect(listener: socket.socket, size: int, when: str) -> None:
    cookie = sockets.cookie(listener.fileno())
    queued = [entry.accept_queue for entry in diag.bound_sockets(Protocol.TCP, _PORT) if entry.cookie == cookie]
    if queued != [size]:
        raise ToolError(f"{queued[0] if queued else 'no'} connections are in the accept queue {when}, not {size}")


def _answer_all(listener: socket.socket, size: int) -> None:
    for _ in range(size):
        with listener.accept()[0] as client:
            client.recv(len(REQUEST))
            client.sendall(_ANSWER)


def _summary(queued: int, program: _Samples, minimal: _Samples, sysctl: _Samples) -> CloseSize:
    return CloseSize(
        queued=queued,
        program_us=spread(program.wall_us, 2),
        minimal_us=spread(minimal.wall_us, 2),
        sysctl_us=spread(sysctl.wall_us, 2),
        program_us_per_connection=round(statistics.median(program.wall_us) / queued, 3),
        sysctl_us_per_connection=round(statistics.median(sysctl.wall_us) / queued, 3),
        relative=relative(program.wall_us, sysctl.wall_us, 3),
        cpu_relative=relative(program.cpu_us, sysctl.cpu_us, 3),
        minimal_relative=relative(minimal.wall_us, sysctl.wall_us, 3),
        over_minimal=relative(program.wall_us, minimal.wall_us, 3),
    )


class _Connections:
    """What the child process does: connect so many, or account for them."""

    def __init__(self) -> None:
        self._clients: list[socket.socket] = []

    def connect(self, count: int) -> str:
        try:
            while len(self._clients) < count:
                client = socket.create_connection((_ADDRESS, _PORT), timeout=TIMEOUT_S)
                self._clients.append(client)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                client.sendall(REQUEST)
        except OSError as error:
            return str(error)
        return "ready"

    def account(self) -> str:
        ledger = Ledger()
        while self._clients:
            with self._clients.pop() as client:
                outcome = _outcome(client)
            setattr(ledger, outcome, getattr(ledger, outcome) + 1)
        return json.dumps(dataclasses.asdict(ledger))


def _outcome(client: socket.socket) -> str:
    try:
        return "answered" if client.recv(len(_ANSWER)) == _ANSWER else "unanswered"
    except TimeoutError:
        return "timed_out"
    except OSError:
        return "reset"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = _Connections()
    for line in sys.stdin:
        print(connections.account() if line == "account\n" else connections.connect(int(line)), flush=True)


if __name__ == "__main__":
    main()
