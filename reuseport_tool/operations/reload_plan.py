"""How to reload: the choices of the operator, whether they make sense, the strategy for this kernel."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool.errors import NotFound, Unsupported, UsageError
from reuseport_tool.kernel import features, processes
from reuseport_tool.models import Endpoint, Policy, Protocol, Step, Strategy
from reuseport_tool.operations import attach


@dataclass(frozen=True)
class Plan:
    """How to reload. Exactly one of `command`, `new_pid` and `run` is given.

    Attributes:
        command: argv of the new server, which the tool starts.
        new_pid: a process that listens, or will, started by somebody else.
        run: a shell command that makes the server replace itself.
        strategy: None chooses `migrate`, or `drain` where migration does not work or wakes nobody.
        policy: None keeps the present one, or means `hash` for a group without a program.
        old_pids: processes to stop; empty means the topmost owners of the present listeners.
        stop_signal, stop_command: how to stop them; the command instead of the signal.
        listeners: how many new ones to wait for in each group; None waits until no more come.
        output: file for the output of the started command; None is our stderr.
        health_command: must succeed; run by the shell after the switch.
        probe: whether to open one connection of our own, so that there is one to accept.
        force: go on although socket options differ.
    """

    command: tuple[str, ...] | None = None
    new_pid: int | None = None
    run: str | None = None
    strategy: Strategy | None = None
    policy: Policy | None = None
    old_pids: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_command: str | None = None
    listeners: int | None = None
    output: Path | None = None
    health_command: str | None = None
    probe: bool = True
    force: bool = False
    start_timeout_s: float = 30.0
    health_timeout_s: float = 10.0
    drain_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0
    lock_timeout_s: float = 0.0


@dataclass(frozen=True)
class Progress:
    """What a reload tells while it runs: a step begins, a step ended, something to know, a warning."""

    begin: Callable[[str], None]
    end: Callable[[Step], None]
    note: Callable[[str], None]
    warn: Callable[[str], None]


def check(endpoint: Endpoint, plan: Plan) -> None:
    forms = [plan.command is not None, plan.new_pid is not None, plan.run is not None]
    if sum(forms) != 1:
        raise UsageError(
            "say how the new side comes to be, in exactly one way",
            hint="-- COMMAND…, or --new-pid PID, or --run 'COMMAND'",
        )
    if endpoint.protocol is not Protocol.TCP:
        raise UsageError("only TCP listeners can be reloaded", hint="the kernel does not migrate UDP datagrams")
    if plan.run and plan.stop_command:
        raise UsageError("--run stops the old side by itself", hint="leave --stop-command out")
    for pid in (*plan.old_pids, *([plan.new_pid] if plan.new_pid else [])):
        if processes.command(pid) is None:
            raise NotFound(f"no process {pid}")


def choose_strategy(plan: Plan, warn: Callable[[str], None]) -> Strategy:
    """The strategy to use here, found out by doing.

    Raises:
        Unsupported: the strategy that was asked for does not work on this kernel.
    """
    works = features.migration_works()
    if works is None:
        warn("it could not be tried whether this kernel migrates and wakes: that takes CAP_SYS_ADMIN")
        works = attach.can_migrate()
    if plan.strategy in (Strategy.MIGRATE, Strategy.SYSCTL) and not works:
        raise Unsupported(
            f"the kernel cannot migrate connections, which --strategy {plan.strategy} needs",
            hint="it came with Linux 5.14; --strategy drain works without it",
        )
    wakes = features.migration_wakes() if works else None
    if plan.strategy is not None:
        if plan.strategy is not Strategy.DRAIN and wakes is False:
            warn("this kernel does not wake a server for a migrated connection (CVE-2026-46015); drain is safe here")
        return plan.strategy
    if works and wakes is not False:
        return Strategy.MIGRATE
    reason = "does not wake a server for a migrated connection (CVE-2026-46015)" if works else "cannot migrate"
    warn(f"this kernel {reason}: draining the old listeners before they are stopped")
    return Strategy.DRAIN
