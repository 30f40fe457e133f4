"""The live proof of hot reload on this kernel: every state of a connection × family × way to reload.

Each case is a story of its own, in a network namespace of its own:

1. Server A listens. Crafted clients bring their connections into one state, and A does not accept.
2. The kernel is asked whether they are in that state.
3. Server B starts, and sleeps in epoll_wait. A goes, in the way that the case is about.
4. The clients go on: they send what they had held back, and hear an answer or a reset.
5. Clients, the kernel's MIBs and the program's counters must tell the same story.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.check import lab, redistribution
from reuseport_tool.check.lab import Lab
from reuseport_tool.check.trial import MIGRATING, RELOADS, SYNACK_RETRIES, WITH_PROGRAM, Cell, Missed, Trial
from reuseport_tool.errors import Interrupted, MissingCapability, ToolError, Unsupported
from reuseport_tool.group import policy as policies
from reuseport_tool.kernel import mib, netns
from reuseport_tool.kernel.packets import CraftedClient, Family
from reuseport_tool.models import Case, CheckedWay, CheckHotReload, ConnectionState, Counters

_WORKERS = 8  # the cases wait for timers most of their time
_ATTEMPTS = 3
_TIMER_NOTE = (
    "new_syn_recv_timer: the kernel notices that the listener is gone when its SYN+ACK timer fires, 1 s after the SYN."
)
_DRAIN_NOTE = (
    f"bpf-drain: net.ipv4.tcp_synack_retries is {SYNACK_RETRIES} in its namespaces. One more client there never "
    f"sends its final ACK, and the drain waits until the kernel gives it up: {2 ** (SYNACK_RETRIES + 1) - 1} s "
    "instead of the 63 s with the kernel's default of 5."
)


def check(
    root: Path | None,
    connections: int = 4,
    ways: Iterable[CheckedWay] = tuple(CheckedWay),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckHotReload:
    """Run all cases of some ways to reload.

    Args:
        root: bpffs folder, None for the usual one.
        connections: of each case.
        progress: called with how many cases are done, of how many.

    Raises:
        Unsupported: the kernel cannot migrate (Linux 5.14) although a way needs it, has no iterator over
            TCP sockets, no veth devices, no IPv6.
        MissingCapability.
    """
    start = time.perf_counter()
    chosen = [way for way in CheckedWay if way in tuple(ways)]
    cells = [Cell(state, family, way) for way in chosen for family in Family for state in ConnectionState]
    with lab.opened(root) as opened:
        _require_migration(chosen)
        cases = _run_all(opened, cells, connections, progress)
        moved = redistribution.redistribute(opened, [way for way in chosen if way in MIGRATING])
    return CheckHotReload(
        kernel=os.uname().release,
        ok=all(case.ok for case in cases) and moved.ok,
        cases=tuple(cases),
        redistribution=moved,
        duration_s=round(time.perf_counter() - start, 3),
        notes=(_TIMER_NOTE, _DRAIN_NOTE) if CheckedWay.BPF_DRAIN in chosen else (_TIMER_NOTE,),
    )


def _require_migration(ways: Iterable[CheckedWay]) -> None:
    needing = [way for way in ways if way in MIGRATING]
    if needing and not policies.can_migrate():
        raise Unsupported(
            "the kernel has no migration of connections (BPF_SK_REUSEPORT_SELECT_OR_MIGRATE)",
            hint="it came with Linux 5.14; the other ways can be checked alone: --strategy bpf-drain",
        )


def _run_all(opened: Lab, cells: list[Cell], connections: int, progress: Callable[[int, int], None]) -> list[Case]:
    cases: dict[Cell, Case] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        slow_first = sorted(cells, key=lambda cell: not cell.slow)
        futures: dict[Future[Case], Cell] = {
            pool.submit(run_cell, opened, cell, connections): cell for cell in slow_first
        }
        try:
            for done in as_completed(futures):
                cases[futures[done]] = done.result()
                progress(len(cases), len(cells))
        except BaseException:
            opened.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [cases[cell] for cell in cells]


def run_cell(opened: Lab, cell: Cell, connections: int) -> Case:
    """One case, from the namespace to the verdict. A state that could not be reached is a case that is not ok."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with netns.throw_away(), ExitStack() as stack:
                return _run(Trial(opened, cell, stack), connections)
        except (Unsupported, MissingCapability, Interrupted):
            raise
        except ToolError as error:
            if not isinstance(error, Missed) or attempt == _ATTEMPTS:
                return _failed(cell, connections, error)
    raise AssertionError("unreachable")


def _failed(cell: Cell, connections: int, error: ToolError) -> Case:
    expected = "survive" if cell.lives else "lose"
    return Case(
        state=cell.state,
        family=cell.family,
        strategy=cell.way,
        connections=connections,
        survived=0,
        expected=expected,
        woken=None,
        duration_s=0.0,
        ok=False,
        detail=f"could not run: {error.message}",
    )


def _run(trial: Trial, connections: int) -> Case:
    trial.bring_up(connections)
    before, counted = mib.read(), trial.counters()
    start = time.perf_counter()
    RELOADS[trial.cell.way](trial)
    woken = trial.settle()
    duration_s = time.perf_counter() - start
    return _verdict(trial, woken, duration_s, mib.read().since(before), trial.counters().since(counted))


def _verdict(trial: Trial, woken: bool | None, duration_s: float, kernel: mib.TcpCounters, program: Counters) -> Case:
    cell, connections = trial.cell, len(trial.clients)
    survived = sum(bool(client.answer) for client in trial.clients)
    wrong = [
        *_wrong_clients(cell, trial.clients, survived),
        *(["a server asleep in epoll_wait was not woken (CVE-2026-46015)"] if woken is False else []),
        *_wrong_counts(cell, survived, kernel, program),
    ]
    return Case(
        state=cell.state,
        family=cell.family,
        strategy=cell.way,
        connections=connections,
        survived=survived,
        expected="survive" if cell.lives else "lose",
        woken=woken,
        duration_s=round(duration_s, 4),
        ok=not wrong,
        detail="; ".join(wrong),
    )


def _wrong_clients(cell: Cell, clients: list[CraftedClient], survived: int) -> list[str]:
    wrong = []
    if survived != (len(clients) if cell.lives else 0):
        wrong.append(f"{survived} of {len(clients)} survived, {'all' if cell.lives else 'none'} should")
    silent = sum(not client.concluded for client in clients)
    if silent:
        wrong.append(f"{silent} clients heard neither an answer nor a reset")
    return wrong


def _wrong_counts(cell: Cell, survived: int, kernel: mib.TcpCounters, program: Counters) -> list[str]:
    """Where the kernel's or the program's counts of migrations disagree with the clients."""
    wrong = []
    migrated = survived if cell.way in MIGRATING else 0
    if (kernel.TCPMigrateReqSuccess, kernel.TCPMigrateReqFailure) != (migrated, 0):
        wrong.append(
            f"clients say {migrated} migrated, the kernel {kernel.TCPMigrateReqSuccess} "
            f"and {kernel.TCPMigrateReqFailure} failures"
        )
    if cell.way in WITH_PROGRAM:
        state = "new_syn_recv" if cell.state.half_open else str(cell.state)
        expected = Counters(selected=program.selected, **{f"migrated_{state}": migrated})
        if program != expected:
            wrong.append(f"clients say {migrated} migrated as {state}, the program {_migrations(program)}")
    return wrong


def _migrations(counters: Counters) -> str:
    return (
        f"{counters.migrated_established} established, {counters.migrated_syn_recv} syn_recv, "
        f"{counters.migrated_new_syn_recv} new_syn_recv, {counters.fallback} fallback"
    )
