"""How long commands take as whole processes: start-up, attach and status, and groups with many listeners."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from reuseport_tool.bench import byte_code, many_server
from reuseport_tool.bench.spread import relative
from reuseport_tool.check import commands, lab
from reuseport_tool.errors import ToolError
from reuseport_tool.group import discover
from reuseport_tool.kernel import diag, netns
from reuseport_tool.kernel.processes import Process
from reuseport_tool.models import BenchSpeed, Endpoint, Protocol, SpeedFigure
from reuseport_tool.waiting import wait_until

IMPORTS, STATUS, ATTACH = "imports", "status", "attach"
_PORT = 8080
_DEADLINE_S = 120.0
_SMALL = (2, 1)


def bench(
    rounds: int, workers: int, addresses: int, root: Path | None, on_round: Callable[[], None] = lambda: None
) -> BenchSpeed:
    """Measure in a throw-away network namespace, with the cache of programs filled.

    Args:
        rounds: at least 2; the order of the arms within a round changes.
        workers, addresses: listeners of each address, and groups, of the server that is attached and reloaded once.
        root: bpffs folder, None for the usual one; a folder in it is used and removed.

    Raises:
        MissingCapability: from the namespace.
        ToolError: a command failed.
    """
    byte_code.make()
    start = time.perf_counter()
    with netns.throw_away(), lab.private_pins(root) as pins:
        tool = _Tool(str(pins))
        with _server(*_SMALL):
            figures = _small(tool, rounds, on_round)
        with _server(workers, addresses) as server:
            figures += _many(tool, server, workers, addresses)
    return BenchSpeed(
        kernel=os.uname().release,
        rounds=rounds,
        workers=workers,
        addresses=addresses,
        figures=figures,
        duration_s=round(time.perf_counter() - start, 2),
    )


class _Tool:
    """Our command line, as a process."""

    def __init__(self, pins: str) -> None:
        self._command = [sys.executable, "-m", "reuseport_tool", "--bpffs", pins]

    def timed(self, *words: object) -> float:
        """Seconds of a command that must succeed."""
        return _timed([*self._command, *map(str, words)])


def _timed(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = commands.run(command, is_shown=False)
    duration_s = time.perf_counter() - start
    if done.returncode:
        raise ToolError(f"{' '.join(command[-3:])} failed: {done.stderr.strip()[-500:]}")
    return duration_s


def _small(tool: _Tool, rounds: int, on_round: Callable[[], None]) -> tuple[SpeedFigure, ...]:
    """attach and status of one small group, against the import of what they cannot do without."""

    def attach() -> float:
        duration_s = tool.timed("attach", _PORT)
        tool.timed("detach", _PORT)
        return duration_s

    arms: dict[str, Callable[[], float]] = {
        IMPORTS: lambda: _timed([sys.executable, "-c", "import click, rich.console"]),
        STATUS: lambda: tool.timed("status"),
        ATTACH: attach,
    }
    for arm in arms.values():
        arm()  # fills the cache
    times: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(arms), len(arms)):
            times[name].append(arms[name]())
        on_round()
    return tuple(
        SpeedFigure(
            name=name,
            duration_s=round(statistics.median(times[name]), 4),
            relative=None if name == IMPORTS else relative(times[name], times[IMPORTS], 3),
        )
        for name in arms
    )


def _many(tool: _Tool, server: Sequence[str], workers: int, addresses: int) -> tuple[SpeedFigure, ...]:
    with tempfile.TemporaryDirectory() as folder:
        log, listeners = Path(folder) / "log", workers * addresses
        figures = {"attach, many": tool.timed("attach", _PORT), "status, many": tool.timed("status", _PORT)}
        figures["reload, many"] = tool.timed("reload", _PORT, "--output", log, "--", *server)
        figures["detach, many"] = tool.timed("detach", _PORT)
        _end_all()
    return tuple(
        SpeedFigure(name=f"{name} ({listeners} listeners)", duration_s=round(duration_s, 3), relative=None)
        for name, duration_s in figures.items()
    )


@contextmanager
def _server(workers: int, addresses: int) -> Iterator[list[str]]:
    """A running many_server, and its command."""
    command = [sys.executable, "-m", many_server.__name__, *map(str, (_PORT, workers, addresses))]
    with ExitStack() as stack:
        process = subprocess.Popen(command)
        stack.callback(_end, process)
        if not wait_until(lambda: len(diag.bound_sockets(Protocol.TCP, _PORT)) == workers * addresses, _DEADLINE_S):
            raise ToolError("the server of the benchmark does not listen")
        yield command


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends its children at SIGTERM."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_DEADLINE_S)


def _end_all() -> None:
    """End the server that the reload started: the masters of who holds a listener now."""
    everything = Endpoint(protocol=Protocol.TCP, address=None, port=_PORT)
    for pid in {pid for found in discover.groups(everything) for pid in found.owners()}:
        Process(pid).signal(signal.SIGTERM)
    if not wait_until(lambda: not diag.bound_sockets(Protocol.TCP, _PORT), _DEADLINE_S):
        raise ToolError("the server of the benchmark does not stop")
