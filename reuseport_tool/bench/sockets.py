"""How long our listing of sockets takes against ss, with few and with many sockets.

The sockets are in a throw-away network namespace, held by child processes that end with this one: TCP
connections over loopback, both ends counted, and bound UDP sockets. All output goes to /dev/null.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import resource
import shutil
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from reuseport_tool.bench import byte_code
from reuseport_tool.bench.spread import relative
from reuseport_tool.check import commands
from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import netns, sysctl
from reuseport_tool.kernel.socket_iterator import Walker
from reuseport_tool.models import BenchSockets, Protocol, SocketsArm, SocketsSize
from reuseport_tool.sockets import select as sockets
from reuseport_tool.sockets.select import Filter

SIZES = (1_000, 10_000, 100_000)
WALK, LIST, COMMAND, SS, SS_P = "walk", "list", "sockets", "ss", "ss -p"

_HOLDS = 20_000  # sockets of one process
_SPARE_FDS = 64
_PORT = 1000  # below the range that connections take theirs from
_PER_ADDRESS = 10_000  # connections to one address, or UDP sockets bound to it
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SS_OPTIONS = {Protocol.TCP: "-Htan", Protocol.UDP: "-Huan"}
_FILL_TIMEOUT_S = 120.0


def bench(
    sizes: Sequence[int],
    protocols: Sequence[Protocol],
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> BenchSockets:
    """Measure each arm `rounds` times with each number of sockets, in an order that changes.

    Args:
        sizes: numbers of sockets, even and rising.
        on_round: called after each round of each protocol and size.

    Raises:
        Unsupported: no ss, or no iterators.
        MissingCapability: from the namespace or the iterators.
        ToolError: the machine does not give that many sockets, or ss and the walk count differently.
    """
    byte_code.make()
    start = time.perf_counter()
    version = _ss_version()
    measured = [size for protocol in protocols for size in _measure(protocol, sizes, rounds, on_round)]
    duration_s = round(time.perf_counter() - start, 2)
    return BenchSockets(
        kernel=os.uname().release, ss=version, rounds=rounds, sizes=tuple(measured), duration_s=duration_s
    )


def _ss_version() -> str:
    if shutil.which("ss") is None:
        raise Unsupported("ss is not installed", hint="it is in iproute2")
    return commands.run(["ss", "-V"]).stdout.strip()


def _measure(
    protocol: Protocol, sizes: Sequence[int], rounds: int, on_round: Callable[[], None]
) -> Iterator[SocketsSize]:
    with ExitStack() as stack:
        stack.enter_context(netns.throw_away())
        sysctl.write("net.ipv4.ip_unprivileged_port_start", "0")
        sysctl.write("net.ipv4.ip_local_port_range", "1024 65535")
        sysctl.write("net.core.somaxconn", str(_HOLDS))
        there = 0
        fillers = itertools.count()
        for size in sizes:
            most = _most_held()
            for start in range(there, size, most):
                filler = next(fillers)
                stack.enter_context(_holder(protocol, filler, min(most, size - start)))
            there = size
            yield _size(protocol, rounds, on_round)


def _size(protocol: Protocol, rounds: int, on_round: Callable[[], None]) -> SocketsSize:
    with Walker([protocol]) as walker:
        arms = _arms(protocol, walker)
        _proven_equal(protocol, walker)
        times: dict[str, list[float]] = {name: [] for name in arms}
        order = random.Random(0)
        for _ in range(rounds):
            for name in order.sample(list(arms), len(arms)):
                times[name].append(_timed(arms[name]))
            on_round()
        number = len(walker.read()[protocol])
    return SocketsSize(protocol=str(protocol), sockets=number, arms=tuple(_arm(name, times) for name in arms))


def _arms(protocol: Protocol, walker: Walker) -> dict[str, Callable[[], object]]:
    ours = [sys.executable, "-m", "reuseport_tool", "sockets", "--protocol", str(protocol)]
    wanted = Filter(protocol=protocol)
    return {
        WALK: walker.read,
        LIST: lambda: sockets.selections(wanted, walker.read(), None),
        COMMAND: lambda: _run(ours),
        SS: lambda: _run(["ss", _SS_OPTIONS[protocol]]),
        SS_P: lambda: _run(["ss", _SS_OPTIONS[protocol] + "p"]),
    }


def _run(command: Sequence[str]) -> None:
    done = commands.run(command, is_shown=False)
    if done.returncode:
        raise ToolError(f"{' '.join(command[-3:])} failed: {done.stderr.strip()[-500:]}", hint="try it by itself")


def _proven_equal(protocol: Protocol, walker: Walker) -> None:
    """Raises ToolError where the arms would not do the same work."""
    shown = commands.run(["ss", _SS_OPTIONS[protocol]]).stdout.count("\n")
    walked = len(walker.read()[protocol])
    if shown != walked:
        raise ToolError(f"ss lists {shown} {protocol} sockets, and the walk {walked}")


def _timed(action: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _arm(name: str, times: dict[str, list[float]]) -> SocketsArm:
    return SocketsArm(
        name=name,
        milliseconds=round(statistics.median(times[name]) * 1000, 2),
        relative=relative(times[name], times[SS], 3),
    )


@contextlib.contextmanager
def _holder(protocol: Protocol, number: int, count: int) -> Iterator[None]:
    """A child process that holds `count` sockets until the end, also that of a killed parent."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _hold(protocol, number, count, theirs)
    theirs.close()
    try:
        ours.settimeout(_FILL_TIMEOUT_S)
        answer = _answer(ours)
        if answer != "ready":
            raise ToolError(f"{count} more {protocol} sockets cannot be opened: {answer}")
        yield
    finally:
        ours.close()
        os.waitpid(child, 0)


def _answer(child: socket.socket) -> str:
    try:
        return child.recv(1024).decode() or "the child ended"
    except TimeoutError:
        return f"not within {_FILL_TIMEOUT_S:.0f} s"


def _most_held() -> int:
    """The sockets of one process, within its hard limit of descriptors."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _HOLDS if hard == resource.RLIM_INFINITY else max(1, min(_HOLDS, hard - _SPARE_FDS))


def _hold(protocol: Protocol, number: int, count: int, parent: socket.socket) -> None:
    """Does not return."""
    held: list[socket.socket] = []
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        fill = _fill_tcp if protocol is Protocol.TCP else _fill_udp
        fill(held, number, count)
        parent.sendall(b"ready")
        parent.recv(1)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            parent.sendall(str(error).encode())
    finally:
        os._exit(0)


def _fill_tcp(held: list[socket.socket], number: int, count: int) -> None:
    """A listener, and connections to it: with the listener and another one `count` sockets."""
    for part in range(0, count, _PER_ADDRESS):
        address = f"127.{number + 1}.{part // _PER_ADDRESS}.1"
        listener = socket.create_server((address, _PORT), backlog=_PER_ADDRESS)
        held.append(listener)
        room = min(_PER_ADDRESS, count - part) - 1
        for _ in range(room // 2):
            client = socket.create_connection((address, _PORT))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            held += (client, listener.accept()[0])
        if room % 2:
            held.append(socket.create_server((address, _PORT + 1)))


def _fill_udp(held: list[socket.socket], number: int, count: int) -> None:
    for index in range(count):
        part, port = divmod(index, _PER_ADDRESS)
        held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        held[-1].bind((f"127.{number + 1}.{part}.1", 1024 + port))
