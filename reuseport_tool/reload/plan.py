"""How to reload: the choices of the operator, whether they make sense, the strategy for this kernel."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

from reuseport_tool.errors import Unsupported, UsageError
from reuseport_tool.group import policy as policies
from reuseport_tool.kernel import processes
from reuseport_tool.models import Endpoint, FlowMode, Policy, Step, Strategy
from reuseport_tool.probes import migration
from reuseport_tool.record import record
from reuseport_tool.reload.thresholds import Threshold

_DRAIN_S = 70.0  # SYN+ACK retries take 63 s by default


@record
class Hook:
    """A shell command of the operator, and the step after which it runs."""

    step: str
    command: str


@record
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
        output: file for the output of the started command. None is our stderr where that is a terminal, else the
            journal of systemd or a file that the report names.
        only: hand over no other groups of the old processes than the ones that were named.
        drop: groups that the new side gives up; they are drained before the stop.
        health_command: must succeed; run by the shell after each step of the canary, and after the switch.
        health_url: must answer; asked of the new generation before it gets a connection, and after as the command.
        canary: shares of the new connections that the new generation gets one after the other, percent.
        step_s: how long each of them lasts.
        abort_on: kernel counters that must not grow too much until the old side is stopped.
        probe: whether to open one connection of our own, so that there is one to accept.
        force: go on although socket options differ, or somebody keeps the old listeners open.
        drain_timeout_s: how long the old side may hold connections: queued ones before it is stopped with the
            strategy drain, accepted ones after it. None means 70 s for what must end, and 0 for what is only
            reported.
        flows: what UDP groups keep together; None keeps what is attached, and means nothing for DNS.
        flow_timeout_s: a UDP flow without a datagram for so long has ended.
        settle_s: an old UDP server that sent nothing for so long has answered all that it read.
        health_datagram: must be answered by each UDP group, in hexadecimal; asked as the URL, and after the switch.
        kill_leftovers: end the accepted connections of the old side that are left after that.
        hooks: commands of the operator, each of which has `hook_timeout_s`. One that fails is a failure of its step.
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
    only: bool = False
    drop: tuple[Endpoint, ...] = ()
    health_command: str | None = None
    health_url: str | None = None
    canary: tuple[float, ...] = ()
    step_s: float = 30.0
    abort_on: tuple[Threshold, ...] = ()
    probe: bool = True
    force: bool = False
    start_timeout_s: float = 30.0
    health_timeout_s: float = 10.0
    drain_timeout_s: float | None = None
    kill_leftovers: bool = False
    hooks: tuple[Hook, ...] = ()
    hook_timeout_s: float = 30.0
    flows: FlowMode | None = None
    flow_timeout_s: float = 30.0
    settle_s: float = 1.0
    health_datagram: str | None = None
    stop_timeout_s: float = 30.0
    lock_timeout_s: float = 0.0

    @property
    def signals(self) -> bool:
        """Whether the old side is stopped by a signal."""
        return self.run is None and self.stop_command is None

    @property
    def queue_drain_timeout_s(self) -> float:
        return _DRAIN_S if self.drain_timeout_s is None else self.drain_timeout_s

    @property
    def leftovers_timeout_s(self) -> float:
        if self.drain_timeout_s is not None:
            return self.drain_timeout_s
        return _DRAIN_S if self.kill_leftovers else 0.0


@record
class Progress:
    """What a reload tells while it runs: a step begins, a step ended, something to know, a warning."""

    begin: Callable[[str], None]
    end: Callable[[Step], None]
    note: Callable[[str], None]
    warn: Callable[[str], None]


def check(plan: Plan) -> None:
    """Raises UsageError for a plan that makes no sense, NotFound for a process that is not there."""
    forms = [plan.command is not None, plan.new_pid is not None, plan.run is not None]
    if sum(forms) != 1:
        raise UsageError(
            "say in exactly one way how the new server starts",
            hint="-- COMMAND…, or --new-pid PID, or --run 'COMMAND', or --unit NAME@",
        )
    if plan.canary:
        _check_canary(plan)
    if plan.health_datagram is not None:
        _check_datagram(plan.health_datagram)
    _check_text(plan)
    if plan.run and plan.stop_command:
        raise UsageError("--run stops the old side by itself", hint="omit --stop-command")
    for pid in (*plan.old_pids, *([plan.new_pid] if plan.new_pid else [])):
        if processes.command(pid) is None:
            raise processes.no_such(pid)


def _check_canary(plan: Plan) -> None:
    if plan.run is not None:
        raise UsageError("--canary needs both servers at once", hint="use -- COMMAND… or --new-pid PID")
    if plan.strategy is Strategy.SYSCTL:
        raise UsageError(
            "--canary needs the program, which --strategy sysctl does not use", hint="leave one of them out"
        )
    ascending = all(lower < higher for lower, higher in itertools.pairwise(plan.canary))
    if not ascending or not plan.canary[0] > 0 or plan.canary[-1] > 100:
        raise UsageError(
            f"not ascending shares in percent: {','.join(f'{share:g}' for share in plan.canary)}",
            hint="for example --canary 5,25,100",
        )


def _check_datagram(text: str) -> None:
    try:
        bytes.fromhex(text)
    except ValueError as error:
        raise UsageError(f"--health-datagram is not hexadecimal: {text!r}", hint="for example 00ff17") from error


def _check_text(plan: Plan) -> None:
    """The journal is JSON, and so are the reports."""
    words = (*(plan.command or ()), plan.run, plan.stop_command, plan.health_command, plan.health_url, plan.output)
    words += tuple(hook.command for hook in plan.hooks)
    try:
        "".join(str(word) for word in words if word is not None).encode()
    except UnicodeEncodeError as error:
        raise UsageError("a command, URL or file name is not UTF-8", hint="put the command into a script") from error


def choose_strategy(plan: Plan, warn: Callable[[str], None]) -> Strategy:
    """The strategy to use here, found out by doing.

    Raises:
        Unsupported: the strategy that was asked for does not work on this kernel.
    """
    works = migration.migration_works()
    if works is None:
        warn("could not try whether this kernel migrates connections and wakes servers: CAP_SYS_ADMIN is needed")
        works = policies.can_migrate()
    if plan.strategy in (Strategy.MIGRATE, Strategy.SYSCTL) and not works:
        raise Unsupported(
            f"the kernel cannot migrate connections, which --strategy {plan.strategy} needs",
            hint="it came with Linux 5.14; --strategy drain works without it",
        )
    wakes = migration.migration_wakes() if works else None
    if plan.strategy is not None:
        if plan.strategy is not Strategy.DRAIN and wakes is False:
            warn("this kernel does not wake a server for a migrated connection (CVE-2026-46015); drain is safe here")
        return plan.strategy
    if works and wakes is not False:
        return Strategy.MIGRATE
    reason = "does not wake a server for a migrated connection (CVE-2026-46015)" if works else "cannot migrate"
    warn(f"this kernel {reason}: draining the old listeners before they are stopped")
    return Strategy.DRAIN
