"""What clients feel when a server under load is replaced, by the usual ways and by ours.

Every arm has the same load: a closed loop of clients, a part of which send their request only a round-trip time after
they have connected, against a server that takes its time for each request. So connections wait in its accept
queue, and, as it listens with TCP_DEFER_ACCEPT, half-open ones for their data. Server, load, haproxy and our own
command are processes of their own in a throw-away network namespace, and end with this one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from reuseport_tool import record_json
from reuseport_tool.bench import byte_code
from reuseport_tool.bench import close as bench_close
from reuseport_tool.bench import server as bench_server
from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.bench.server import END_OF_ANSWER
from reuseport_tool.bench.spread import spread
from reuseport_tool.check import commands, lab
from reuseport_tool.errors import ToolError
from reuseport_tool.group import detach, discover
from reuseport_tool.kernel import mib, netns, resets, sysctl
from reuseport_tool.kernel import rlimit as room
from reuseport_tool.kernel.resets import ResetCounter
from reuseport_tool.models import BenchReload, Endpoint, Protocol, Reload, ReloadArm, Resets
from reuseport_tool.record import record
from reuseport_tool.reload.timeline import Wait
from reuseport_tool.waiting import wait_until

PLAIN, ACCEPT_DRAIN, SYSCTL, BPF_DRAIN, MIGRATE = "plain", "accept-drain", "sysctl", "bpf-drain", "migrate"
HAPROXY_SF, HAPROXY_X = "haproxy -sf", "haproxy -x"

_ADDRESS, _PORT, _BACKEND_PORT = "127.0.0.1", 8080, 8081
_ENDPOINT = Endpoint(protocol=Protocol.TCP, address=_ADDRESS, port=_PORT)
_LISTENERS = 4
_SERVICE_US = 500
_ROUND_TRIP_S = 0.05
_CANARY, _CANARY_STEP = "10,50", "700ms"
_DEADLINE_S = 30.0
_ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")


@dataclass(kw_only=True)
class _Samples:
    """One element a round; the ledger is of all rounds."""

    ledger: Ledger = field(default_factory=Ledger)
    migrated: int = 0
    resets: Resets | None = None
    lost: list[float] = field(default_factory=list)
    longest_wait_ms: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)


class _Stage:
    """Where one reload happens: the processes of the turn, ended by `stack`, and a folder for their files."""

    def __init__(self, stack: ExitStack, folder: Path, pins: Path) -> None:
        self._stack = stack
        self.folder = folder
        self.pins = pins

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE)
        self._stack.callback(_end, process)
        return process

    def server(self, *options: object, port: int = _PORT, listeners: int = _LISTENERS) -> subprocess.Popen[bytes]:
        """Start a server of ours, and wait until it listens."""
        before = _listeners(port)
        words = (_ADDRESS, port, "--listeners", listeners, "--service-us", _SERVICE_US, "--defer-accept", *options)
        process = self.start(sys.executable, "-m", bench_server.__name__, *words)
        self.await_listeners(process, before, listeners, port)
        return process

    def haproxy(self, *options: object) -> subprocess.Popen[bytes]:
        """Start haproxy before the server, with few connections at a time: the others wait in the kernel."""
        before = _listeners(_PORT)
        config = self.folder / "haproxy.cfg"
        config.write_text(_HAPROXY.format(socket=self.folder / "stats"))
        process = self.start(*_ENDS_WITH_PARENT, "haproxy", "-q", "-db", "-f", config, *options)
        self.await_listeners(process, before, 0 if "-x" in options else 1, _PORT)
        return process

    @staticmethod
    def await_listeners(process: subprocess.Popen[bytes], before: set[int], count: int, port: int) -> None:
        def listening() -> bool:
            return process.poll() is not None or len(_listeners(port) - before) >= count

        if not wait_until(listening, _DEADLINE_S) or process.poll() is not None:
            raise ToolError(f"a server of the benchmark does not listen: {process.args!r}")


_HAPROXY = f"""
global
    nbthread 1
    stats socket {{socket}} mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout connect 15s
    timeout client 15s
    timeout server 15s
frontend front
    bind {_ADDRESS}:{_PORT} defer-accept
    maxconn 8
    backlog 4096
    default_backend back
backend back
    server app {_ADDRESS}:{_BACKEND_PORT}
"""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _listeners(port: int) -> set[int]:
    return {entry.cookie for entry in discover.sockets_in(Endpoint(protocol=Protocol.TCP, address=_ADDRESS, port=port))}


@record
class _Arm:
    """`start` gives the old process; `reload` starts the new one and tells the old one to stop."""

    name: str
    start: Callable[[_Stage], subprocess.Popen[bytes]]
    reload: Callable[[_Stage, subprocess.Popen[bytes]], object]
    migrate_req: str = "0"


def _plain(stage: _Stage, old: subprocess.Popen[bytes]) -> None:
    stage.server()
    old.terminate()


def _by_the_tool(strategy: str) -> Callable[[_Stage, subprocess.Popen[bytes]], None]:
    def reload(stage: _Stage, old: subprocess.Popen[bytes]) -> None:
        _reload(stage, old, "--strategy", strategy)

    return reload


def _reload(stage: _Stage, old: subprocess.Popen[bytes], *options: object) -> str:
    """By our own command, as an operator starts it. Returns its output."""
    new = stage.server()
    words = ("--new-pid", new.pid, "--old-pid", old.pid, "--listeners", _LISTENERS, *options)
    command = [sys.executable, "-m", "reuseport_tool", "--bpffs", stage.pins, "reload", _ENDPOINT, *words]
    done = commands.run(list(map(str, command)))
    if done.returncode:
        shown = " ".join(map(str, options))
        raise ToolError(f"reload {shown} exited with {done.returncode}: {done.stderr.strip()}", log=done.stdout)
    return done.stdout


def one_reload(clients: int, root: Path | None) -> tuple[Reload, tuple[Wait, ...]]:
    """One reload under the same load, with a canary: its report, and what each client waited. Raises as bench()."""
    with netns.throw_away(), lab.private_pins(root) as folder, ExitStack() as stack:
        pins = Path(str(folder))
        stage = _Stage(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())), pins)
        stack.enter_context(_detached_after(pins))
        old = stage.server()
        with _load(clients, record=True) as load:
            load.await_warm()
            _await_queue(clients // 8)
            report = _reload(stage, old, "--json", "--canary", _CANARY, "--step", _CANARY_STEP)
            ledger = load.stop()
    waits = tuple(Wait(begun_at=begun_at, waited_s=waited_s) for begun_at, waited_s in ledger.waits)
    return record_json.decode(Reload, report.encode()), waits


def _load(clients: int, record: bool = False) -> Load:
    """The load of every arm."""
    slow = clients // 2
    return Load(_ADDRESS, _PORT, clients, answer_end=END_OF_ANSWER, slow=slow, delay_s=_ROUND_TRIP_S, record=record)


def _haproxy_behind(stage: _Stage) -> subprocess.Popen[bytes]:
    stage.server(port=_BACKEND_PORT, listeners=1)
    return stage.haproxy()


def _haproxy_plain(stage: _Stage, old: subprocess.Popen[bytes]) -> None:
    stage.haproxy("-sf", old.pid)


def _haproxy_passing(stage: _Stage, old: subprocess.Popen[bytes]) -> None:
    """The new haproxy takes the listeners' descriptors from the old one, over its stats socket."""
    stage.haproxy("-x", stage.folder / "stats", "-sf", old.pid)


_ARMS = (
    _Arm(name=PLAIN, start=_Stage.server, reload=_plain),
    _Arm(name=ACCEPT_DRAIN, start=lambda stage: stage.server("--accept-first"), reload=_plain),
    _Arm(name=HAPROXY_SF, start=_haproxy_behind, reload=_haproxy_plain),
    _Arm(name=HAPROXY_X, start=_haproxy_behind, reload=_haproxy_passing),
    _Arm(name=SYSCTL, start=_Stage.server, reload=_plain, migrate_req="1"),
    _Arm(name=BPF_DRAIN, start=_Stage.server, reload=_by_the_tool("drain")),
    _Arm(name=MIGRATE, start=_Stage.server, reload=_by_the_tool("migrate")),
)


def bench(
    rounds: int,
    clients: int,
    close_rounds: int,
    root: Path | None,
    queued: Sequence[int] = bench_close.QUEUED,
    on_round: Callable[[], None] = lambda: None,
) -> BenchReload:
    """Measure each arm `rounds` times under load, and close(2) `close_rounds` times with each queue.

    Args:
        rounds, close_rounds: at least 2; the order of the arms within a round changes.
        clients: connections at a time, of which a half are slow to send.
        root: bpffs folder, None for the usual one; a folder in it is used and removed.

    Raises:
        MissingCapability, Unsupported, ProgramRejected: from the namespace, and from loading.
        ToolError: an arm did not do what it is about.
    """
    byte_code.make()
    start = time.perf_counter()
    samples = {arm.name: _Samples() for arm in _ARMS if _absent(arm) == ""}
    with room.descriptors(max(queued) + bench_close.SPARE_FDS), netns.throw_away(), lab.private_pins(root) as pins:
        sysctl.write("net.core.somaxconn", "4096")
        for order in _orders(rounds):
            for arm in order:
                if arm.name in samples:
                    _turn(arm, clients, Path(str(pins)), samples[arm.name])
            on_round()
        closes = bench_close.measure(queued, close_rounds, on_round)
    return BenchReload(
        kernel=os.uname().release,
        rounds=rounds,
        clients=clients,
        arms=tuple(_summary(arm, samples.get(arm.name)) for arm in _ARMS),
        close_rounds=close_rounds,
        closes=closes,
        duration_s=round(time.perf_counter() - start, 2),
    )


def _orders(rounds: int) -> Iterator[list[_Arm]]:
    """The arms of each round, in an order that changes."""
    chance = random.Random(0)
    return (chance.sample(_ARMS, len(_ARMS)) for _ in range(rounds))


def _absent(arm: _Arm) -> str:
    """Why an arm cannot be measured here, "" where it can."""
    return "haproxy is not installed" if arm.start is _haproxy_behind and shutil.which("haproxy") is None else ""


def _turn(arm: _Arm, clients: int, pins: Path, samples: _Samples) -> None:
    with ExitStack() as stack:
        stack.enter_context(sysctl.changed(sysctl.TCP_MIGRATE_REQ, arm.migrate_req))
        stage = _Stage(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())), pins)
        stack.enter_context(_detached_after(pins))
        old = arm.start(stage)
        counter = stack.enter_context(resets.counting([_PORT]))
        load = stack.enter_context(_load(clients))
        load.await_warm()
        _await_queue(clients // 8)
        load.mark()
        before = mib.read()
        start = time.perf_counter()
        arm.reload(stage, old)
        if not wait_until(lambda: old.poll() is not None, _DEADLINE_S, poll_s=0.002):
            raise ToolError(f"{arm.name}: the old server did not stop")
        samples.duration_s.append(time.perf_counter() - start)
        ledger = load.stop()
        if isinstance(counter, ResetCounter):
            counted = counter.total()
            samples.resets = counted if samples.resets is None else samples.resets.plus(counted)
    samples.ledger = samples.ledger.plus(ledger)
    samples.migrated += mib.read().since(before).TCPMigrateReqSuccess
    samples.lost.append(ledger.lost)
    samples.longest_wait_ms.append(ledger.longest_wait_s * 1000)


@contextlib.contextmanager
def _detached_after(pins: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if pins.is_dir():
            with contextlib.suppress(ToolError):  # not one of our arms: nothing is attached
                detach.detach(_ENDPOINT, pins)


def _await_queue(length: int) -> None:
    """Wait until so many connections wait to be accepted, which is when a restart hurts."""

    def queued() -> bool:
        return sum(entry.accept_queue or 0 for entry in discover.sockets_in(_ENDPOINT)) >= length

    if not wait_until(queued, _DEADLINE_S, poll_s=0.002):
        raise ToolError(f"the load does not fill the accept queues: {length} connections should wait")


def _summary(arm: _Arm, samples: _Samples | None) -> ReloadArm:
    if samples is None:
        return ReloadArm(name=arm.name, detail=_absent(arm))
    ledger = samples.ledger
    return ReloadArm(
        name=arm.name,
        connections=ledger.connections,
        answered=ledger.answered,
        refused=ledger.refused,
        reset=ledger.reset,
        unanswered=ledger.unanswered,
        timed_out=ledger.timed_out,
        migrated=samples.migrated,
        resets=samples.resets,
        lost=spread(samples.lost, 1),
        longest_wait_ms=spread(samples.longest_wait_ms, 1),
        duration_s=spread(samples.duration_s, 3),
    )
