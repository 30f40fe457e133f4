"""The reload: a transaction that hands a port from one generation of a server to the next."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from reuseport_tool.errors import (
    Conflict,
    Interrupted,
    MissingCapability,
    NotFound,
    RolledBack,
    ToolError,
    Unsupported,
)
from reuseport_tool.group import attach, discover, state
from reuseport_tool.group.discover import Found, Member
from reuseport_tool.kernel import bpffs, iterator, mib, processes, sysctl
from reuseport_tool.kernel.processes import Identity
from reuseport_tool.models import (
    CanaryStep,
    Endpoint,
    Leftovers,
    Lost,
    Migrated,
    Queues,
    Reload,
    Side,
    Step,
    Strategy,
)
from reuseport_tool.reload import journal, leftovers, sides, steering, thresholds
from reuseport_tool.reload import plan as reload_plan
from reuseport_tool.reload.group import Group
from reuseport_tool.reload.health import AcceptGate
from reuseport_tool.reload.interrupts import Interrupts
from reuseport_tool.reload.journal import Journal, Record
from reuseport_tool.reload.leftovers import OldConnections
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.sides import Started
from reuseport_tool.waiting import wait_until, wait_until_stable

_SETTLE_S = 0.3  # no further listener for so long: the new side has all it opens
_INHERIT_S = 2.0  # a --run command is over for so long and nothing changed: the server kept its listeners
_HALF_OPEN_S = 5.0  # how long the proof waits for half-open connections of the closed listeners
_WATCH_S = 0.1  # how often a canary is looked at
_URL_AGAIN_S = 0.2

_ROLL_BACK = "roll back"
_NO_WAY_BACK = ("stop", "leftovers", "prove")


def reload(endpoint: Endpoint, plan: Plan, root: Path | None, progress: Progress) -> Reload:
    """Replace the server behind every group that the endpoint means.

    Raises:
        UsageError: the plan contradicts itself, or the endpoint is UDP.
        NotFound: nothing listens there, or a process of the plan does not exist.
        MissingCapability: also where the old side could not be told to stop.
        Unsupported: the strategy does not work on this kernel.
        Conflict: locked, a foreign program, or an earlier reload was killed.
        RolledBack: it failed, and the old generation is working as before.
        Interrupted: the same, after an interrupt.
        ToolError: it failed after the old side was stopped, which cannot be undone.
    """
    reload_plan.check(endpoint, plan)
    strategy = reload_plan.choose_strategy(plan, progress.warn)
    found = discover.groups(endpoint)
    if plan.health_url:
        steering.url(plan.health_url, [group.endpoint for group in found])
    folder = bpffs.find_or_mount(root)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        groups = []
        for present in found:
            group_folder = stack.enter_context(state.locked(folder, present.endpoint, plan.lock_timeout_s))
            state.refuse_interrupted(group_folder, present.endpoint)
            # As it is now: who held the lock before us may have replaced it.
            groups.append(Group.begin(_old_members(discover.now(present.endpoint), plan), group_folder))
        run = _Run(endpoint, plan, strategy, groups, progress, interrupts)
        stack.callback(run.close)
        run.begin()
        return run.execute()


def resume(endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float = 0.0) -> Reload:
    """Finish a reload that was killed, from the step in which it was.

    Raises:
        NotFound: no reload of this endpoint was killed.
        Conflict: it runs, or was being rolled back.
        RolledBack, Interrupted, ToolError: as reload().
    """
    with _restored(endpoint, root, progress, wait_s) as run:
        if run.step == _ROLL_BACK:
            raise Conflict(
                "the reload was being rolled back when it was interrupted", hint=f"reload {run.endpoint} --abort"
            )
        return run.execute()


def abort(endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float = 0.0) -> Reload:
    """Undo a reload that was killed: the old generation works, the new side is stopped.

    Raises:
        NotFound: no reload of this endpoint was killed.
        Conflict: it runs, or the old side has been told to stop or is gone.
        ToolError: something of the new side is left.
    """
    with _restored(endpoint, root, progress, wait_s) as run:
        return run.abort()


@contextlib.contextmanager
def _restored(endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float) -> Iterator[_Run]:
    """The run of the reload that covers the endpoint, with the locks of all its groups."""
    folder = bpffs.find(root)
    first = journal.interrupted(folder, endpoint)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        folders = [stack.enter_context(state.locked(folder, group.endpoint, wait_s)) for group in first.groups]
        record = journal.interrupted(folder, endpoint)  # as it is now that nobody else changes it
        if record.begun_at != first.begun_at:
            raise Conflict(f"another reload of {endpoint} was interrupted meanwhile", hint="look at it with: status")
        groups = [Group.restore(each, where) for each, where in zip(record.groups, folders, strict=True)]
        run = _Run(record.endpoint, record.plan, record.strategy, groups, progress, interrupts)
        stack.callback(run.close)
        run.restore(record)
        yield run


def _old_members(group: Found, plan: Plan) -> Found:
    """The listeners to be replaced: those of the old processes, or all that are not the new one's."""
    members = tuple(
        member
        for member in group.members
        if (not plan.old_pids or _held_below(member, plan.old_pids))
        and not (plan.new_pid and _held_below(member, (plan.new_pid,)))
    )
    if not members:
        discover.require_visible(group.members)
        whose = f"of process {', '.join(map(str, plan.old_pids))}" if plan.old_pids else "besides the new ones"
        raise NotFound(f"{group.endpoint} has no listeners {whose}")
    return Found(group.endpoint, members)


def _held_below(member: discover.Member, pids: Sequence[int]) -> bool:
    return any(processes.is_descendant(holder.pid, pid) for holder in member.holders for pid in pids)


def _identities(pids: Sequence[int]) -> tuple[Identity, ...]:
    return tuple(found for pid in pids if (found := processes.identity(pid)) is not None)


class _Run:
    """The state of one reload; each step is a method, execute() has their order.

    A step can be done again: what it finds done it leaves. That is how a killed run is resumed, from the
    step that the journal names.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        strategy: Strategy,
        groups: list[Group],
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.strategy = strategy
        self.groups = groups
        self.progress = progress
        self.interrupts = interrupts
        self.journal = Journal([group.folder for group in groups])
        self.sequence = 0
        self.begun_at = time.time()
        self.begun = time.perf_counter()
        self.step = "prepare"
        self.steps: list[Step] = []
        self.warnings: list[str] = []
        self.canary: list[CanaryStep] = []
        self.old: tuple[Identity, ...] = ()
        self.old_side: tuple[Identity, ...] = ()
        self.started: Started | None = None
        self.stop_asked = False
        self.migrate_req_before: str | None = None
        self.mib_before = mib.read()
        self.switch_us: float | None = None
        self.queued = Queues(accept_queue=0, half_open=None)
        self.stopped_at = time.monotonic()
        self.leftovers: Leftovers | None = None
        self.copies = ExitStack()
        self.old_copies: dict[Endpoint, dict[int, int]] = {}
        self.url = steering.url(plan.health_url, [group.endpoint for group in groups]) if plan.health_url else None
        self.loaded = ExitStack()
        self.listeners = self.loaded.enter_context(iterator.tcp_listeners())
        self.chosen = self.loaded.enter_context(attach.ChosenPolicy(plan.policy, None))

    def begin(self) -> None:
        owners = tuple(self.plan.old_pids) or tuple(
            processes.topmost({holder.pid for group in self.groups for m in group.old.members for holder in m.holders})
        )
        if self.plan.run is None and self.plan.stop_command is None:
            sides.check_signals(owners)  # at the stop there is no way back
        self.old = _identities(owners)
        self.old_side = self._find_old_side()
        self._save()

    def restore(self, record: Record) -> None:
        """Go on with what another run began."""
        self.sequence, self.begun_at, self.step = record.sequence, record.begun_at, record.step
        self.steps, self.warnings, self.canary = list(record.steps), list(record.warnings), list(record.canary)
        self.old, self.old_side, self.stop_asked = record.old, record.old_side, record.stop_asked
        self.migrate_req_before, self.mib_before = record.migrate_req_before, record.mib_before
        self.queued, self.switch_us = record.queued, record.switch_us
        self.begun = time.perf_counter() - (time.time() - record.begun_at)
        if record.started is not None:
            self.started = Started(record.started, sides.shown(self.plan.command or self.plan.run or ""))
        for group in self.groups:
            with contextlib.suppress(NotFound):
                group.open()
            group.find_new(self._is_new)

    def _save(self) -> None:
        """Write down where we are. What a killed run did after this is found by looking."""
        self.sequence += 1
        self.journal.write(
            Record(
                sequence=self.sequence,
                pid=os.getpid(),
                begun_at=self.begun_at,
                endpoint=self.endpoint,
                step=self.step,
                plan=self.plan,
                strategy=self.strategy,
                old=self.old,
                old_side=self.old_side,
                started=self.started.identity if self.started else None,
                stop_asked=self.stop_asked,
                migrate_req_before=self.migrate_req_before,
                mib_before=self.mib_before,
                queued=self.queued,
                switch_us=self.switch_us,
                canary=tuple(self.canary),
                steps=tuple(self.steps),
                warnings=tuple(self.warnings),
                groups=tuple(group.record() for group in self.groups),
            )
        )

    def close(self) -> None:
        self.copies.close()
        self.journal.close()
        self.loaded.close()
        for group in self.groups:
            group.close()

    def execute(self) -> Reload:
        if self.step not in _NO_WAY_BACK:
            try:
                self._hand_over()
            except (ToolError, KeyboardInterrupt) as error:
                with self.interrupts.shielded(deliver=False):
                    self._roll_back(error)
        # From here the old side is being stopped: there is no way back, so interrupts wait for the end.
        with self.interrupts.shielded(deliver=False):
            try:
                self._finish()
            except ToolError:
                self.journal.remove()
                raise
            report = self._report("reloaded", self._migrated())
            self.journal.remove()
            return report

    def _hand_over(self) -> None:
        with self._step("prepare"):
            self._prepare()
        with self._step("start"):
            self._start()
        with self._step("compare"):
            self._compare()
        with self._step("register"), self.interrupts.shielded():
            self._register()
        with self._step("canary", skip=not self._asks_before_switch()):
            self._canary()
        with self._step("switch"), self.interrupts.shielded():
            self._switch()
        if self.plan.run is None:
            with self._step("health"):
                self._health()
            with self._step("drain", skip=self.strategy is not Strategy.DRAIN):
                self._drain()

    def _finish(self) -> None:
        with self._step("stop"):
            self._stop()
        if self.plan.run is not None:
            with self._step("health"):
                self._health()
        with self._step("leftovers"):
            self._leftovers()
        with self._step("prove"):
            self._tidy()

    @contextlib.contextmanager
    def _step(self, name: str, skip: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        self.progress.begin(name)
        if self.step != name and not (name == "health" and self.step in _NO_WAY_BACK):
            self.step = name
            self._save()
        outcome, detail = "skipped" if skip else "done", ""
        try:
            yield
        except (ToolError, KeyboardInterrupt) as error:
            outcome, detail = "failed", str(error) or "interrupted"
            raise
        finally:
            step = Step(name=name, duration_s=round(time.perf_counter() - start, 4), outcome=outcome, detail=detail)
            self.steps.append(step)
            self.progress.end(step)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.warn(text)

    # what is where

    @property
    def old_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self.old)

    def _find_old_side(self) -> tuple[Identity, ...]:
        """The old processes, those that descend from them, and those that hold an old listener."""
        found = [discover.now(group.endpoint).subset(group.old_cookies) for group in self.groups]
        holding = {holder.pid for group in found for member in group.members for holder in member.holders}
        return _identities(sorted({*holding, *processes.below(self.old_pids)}))

    def _old_cookies(self) -> set[int]:
        return {cookie for group in self.groups for cookie in group.old_cookies}

    def _new_cookies(self) -> set[int]:
        return {cookie for group in self.groups for cookie in group.new}

    def _is_new(self, member: Member) -> bool:
        """Whether a listener belongs to the new side, and not to a worker that the old side started since."""
        if not member.holders or self.plan.run is not None:
            return bool(member.holders)
        if self.plan.new_pid is not None:
            return _held_below(member, (self.plan.new_pid,))
        return not _held_below(member, self.old_pids)

    def _count_new(self) -> int:
        return sum(group.find_new(self._is_new) for group in self.groups)

    def _queues(self) -> dict[int, int]:
        """Accept queue of each listener of our groups, by cookie."""
        return {
            entry.cookie: entry.accept_queue or 0
            for group in self.groups
            for entry in discover.sockets_in(group.endpoint)
        }

    def _waiting(self, cookies: set[int]) -> Queues:
        """What listeners hold now."""
        queues = self._queues()
        half_open = None
        if self.listeners is not None:
            infos = self.listeners.read().listeners
            half_open = sum(infos[cookie].half_open for cookie in cookies & infos.keys())
        return Queues(accept_queue=sum(queues.get(cookie, 0) for cookie in cookies), half_open=half_open)

    def _still_listening(self) -> set[int]:
        return self._old_cookies() & self._queues().keys()

    def _half_open_behind(self) -> int:
        """Request sockets that still point at a closed old listener."""
        assert self.listeners is not None
        requests = self.listeners.read().requests
        gone = self._old_cookies() - self._still_listening()
        return sum(requests.get(cookie, 0) for cookie in gone)

    def _owners(self, cookies: Sequence[int]) -> set[int]:
        """The topmost processes that hold these listeners now."""
        present = {group.endpoint: discover.sockets_in(group.endpoint) for group in self.groups}
        return {pid for found in discover.with_holders(present) for pid in found.subset(cookies).owners()}

    # prepare: from here connections that are queued already are safe

    def _prepare(self) -> None:
        if self.strategy is Strategy.SYSCTL:
            self._prepare_sysctl()
        else:
            for group in self.groups:
                with self.interrupts.shielded():
                    group.attach(self.chosen, self.listeners)
                    self._save()
        if self.plan.run is not None:
            # Held until the new generation works: whatever the command closes stays open that long.
            self.old_copies = {
                group.endpoint: self.copies.enter_context(discover.descriptors(group.old.members))
                for group in self.groups
            }

    def _prepare_sysctl(self) -> None:
        for group in self.groups:
            if attach.attached_program(group.old, self.listeners) is not None:
                raise Conflict(
                    f"{group.endpoint} has a program, which decides instead of the sysctl",
                    hint="use --strategy migrate, or detach the program first",
                )
        with self.interrupts.shielded():
            if self.migrate_req_before is None:
                self.migrate_req_before = sysctl.read(sysctl.TCP_MIGRATE_REQ)
                self._save()
            sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")

    # start: the new side listens

    def _start(self) -> None:
        if self.plan.new_pid is None and not self._is_started():
            with self.interrupts.shielded():
                self.started = Started.prepare(self.plan.command or self.plan.run or "", self.plan.output)
                self._save()
                self.started.release()
                self.progress.note(f"started process {self.started.pid}: {self.started.shown}")
        if self.plan.run is not None:
            self._await_replacement()
        else:
            self._await_listeners()

    def _is_started(self) -> bool:
        """Whether the command that an earlier run started is at work, or has been."""
        return self.started is not None and (not self.started.is_over() or self._count_new() > 0)

    def _await_listeners(self) -> None:
        """Wait until every group has its new listeners."""
        for group in self.groups:
            wanted = self.plan.listeners

            def count(group: Group = group) -> int:
                failure = self.started.failure() if self.started else None
                if failure and not group.find_new(self._is_new):
                    raise self._never_listened(group, f"the new server {failure}")
                return group.find_new(self._is_new)

            if not wait_until_stable(count, wanted, _SETTLE_S, self.plan.start_timeout_s) and not group.new:
                raise self._never_listened(group, f"no new listener within {self.plan.start_timeout_s:g} s")
            if wanted is not None and len(group.new) < wanted:
                raise ToolError(
                    f"{len(group.new)} of {wanted} new listeners on {group.endpoint} "
                    f"within {self.plan.start_timeout_s:g} s"
                )

    def _never_listened(self, group: Group, what: str) -> ToolError:
        pid = self.plan.new_pid or (self.started.pid if self.started else 0)
        elsewhere = sides.listening_elsewhere(pid) if pid else []
        if elsewhere:
            return ToolError(
                f"{what}: it listens on {', '.join(elsewhere)} and not on {group.endpoint}",
                hint="give the new server the very same address and port",
            )
        uid = next((str(member.socket.uid) for member in group.old.members), "(unknown)")
        return ToolError(
            f"{what} on {group.endpoint}",
            hint=f"its output tells why; it needs SO_REUSEPORT, and uid {uid}, which owns the present listeners",
        )

    def _await_replacement(self) -> None:
        """Wait until the command of --run has brought new listeners, or is over and kept the old ones."""
        if not wait_until(self._replaced, self.plan.start_timeout_s):
            raise ToolError(f"no new listener on {self.endpoint} within {self.plan.start_timeout_s:g} s")
        if any(group.new for group in self.groups):
            wanted = self.plan.listeners * len(self.groups) if self.plan.listeners else None
            wait_until_stable(self._count_new, wanted, _SETTLE_S, self.plan.start_timeout_s)

    def _replaced(self) -> bool:
        assert self.started is not None
        if self._count_new():
            return True
        failure = self.started.failure()
        if failure:
            raise ToolError(f"the --run command {failure}: {self.started.shown}")
        over_s = self.started.over_for_s()
        return over_s is not None and over_s >= _INHERIT_S and all(group.held_by_others() for group in self.groups)

    # compare: nothing is moved to a listener that would treat the connections differently

    def _compare(self) -> None:
        for group in self.groups:
            if not group.new:
                continue
            found = group.differences(self.old_copies.get(group.endpoint))
            for text in found.harmless:
                self._warn(f"{group.endpoint}: {text}")
            if found.unsafe and not self.plan.force:
                raise ToolError(
                    f"unsafe to move connections on {group.endpoint}: {'; '.join(found.unsafe)}",
                    hint="give the new server the same options, or use --force",
                )
            for text in found.unsafe:
                self._warn(f"{group.endpoint}: {text} (--force)")

    # register: the new generation is complete, and nothing goes to it yet

    def _register(self) -> None:
        changing = [group for group in self.groups if group.state is not None and group.new]
        for group in changing:
            assert group.state is not None
            if group.new_generation is None:
                group.new_generation = group.state.next_generation()
        self._save()
        for group in changing:
            group.fill()

    # canary: the new generation is asked, and gets a growing share of the new connections

    def _asks_before_switch(self) -> bool:
        """Whether the new generation is tried while the old one works on."""
        if self.strategy is Strategy.SYSCTL or self.plan.run is not None:
            return False
        return bool(self.plan.canary or self.url)

    def _canary(self) -> None:
        if not self._asks_before_switch() or any(group.is_switched for group in self.groups):
            return
        reached = max(self._share(group) for group in self.groups)
        if not reached:
            self._give_share(0)
            self._ask_new(steered=True)
        for percent in self.plan.canary:
            if reached <= percent < 100:
                self._do_share(percent)

    def _share(self, group: Group) -> float:
        """The share that the new generation has now, percent."""
        assert group.state is not None
        canary = group.state.canary
        return canary[1] / state.SHARES * 100 if canary and canary[0] == group.new_generation else 0.0

    def _give_share(self, percent: float) -> None:
        for group in self.groups:
            assert group.state is not None
            assert group.new_generation is not None
            group.state.share(group.new_generation, round(percent / 100 * state.SHARES))

    def _do_share(self, percent: float) -> None:
        before, start = self._canary_counts(), time.monotonic()
        self._give_share(percent)
        self.progress.note(f"{percent:g} % of the new connections go to the new generation")
        self._watch(self.plan.step_s)
        self._ask_new(steered=True)
        to_new, to_old = (now - then for now, then in zip(self._canary_counts(), before, strict=True))
        self.canary.append(
            CanaryStep(percent=percent, duration_s=round(time.monotonic() - start, 3), to_new=to_new, to_old=to_old)
        )
        self._save()

    def _canary_counts(self) -> tuple[int, int]:
        """New connections that the program gave to the canary and to the working generation."""
        counters = [group.state.counters() for group in self.groups if group.state is not None]
        return sum(each.canary for each in counters), sum(each.selected for each in counters)

    def _watch(self, duration_s: float) -> None:
        """Raises ToolError as soon as a new listener closes, or a counter of --abort-on grows too much."""
        deadline = time.monotonic() + duration_s
        while True:
            gone = self._new_cookies() - self._queues().keys()
            if gone:
                raise ToolError(f"{len(gone)} of the new listeners closed again")
            thresholds.check(self.plan.abort_on, self.mib_before)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(_WATCH_S, left_s))

    # switch: the commit

    def _switch(self) -> None:
        for group in self.groups:
            if group.state is not None and group.new_generation is not None and not group.is_switched:
                # Commit point: from here new connections reach the new generation.
                took_us = group.state.switch(group.new_generation)
                self.switch_us = max(self.switch_us or 0.0, round(took_us, 1))

    # health: the new generation accepts

    def _health(self) -> None:
        self._ask_new(steered=False)

    def _ask_new(self, steered: bool) -> None:
        """Raises ToolError when the new generation does not accept, answer, or satisfy the command and counters."""
        if self.plan.probe:
            for group in self.groups:
                steering.probe(group.endpoint, group.state if steered else None)
        gate = AcceptGate(self._new_cookies())
        if not wait_until(lambda: gate.passed(self._queues()), self.plan.health_timeout_s):
            raise ToolError(
                f"the new server does not accept: {gate.waiting()} after {self.plan.health_timeout_s:g} s",
                hint="--health-timeout gives it longer; --no-probe opens no connection of the tool's own",
            )
        if self.url is not None:
            self._ask_url(self.url, steered)
        if self.plan.health_command:
            sides.run(self.plan.health_command, self.plan.health_timeout_s, "the health command")
        thresholds.check(self.plan.abort_on, self.mib_before)

    def _ask_url(self, url: steering.Url, steered: bool) -> None:
        """Ask until it answers well, at most for the health timeout."""
        canary = next(group.state for group in self.groups if group.endpoint == url.group) if steered else None
        deadline = time.monotonic() + self.plan.health_timeout_s
        while True:
            try:
                return url.ask(max(deadline - time.monotonic(), _URL_AGAIN_S), canary)
            except ToolError:
                if time.monotonic() + _URL_AGAIN_S >= deadline:
                    raise
                time.sleep(_URL_AGAIN_S)

    # drain: wait until the old listeners hold nothing

    def _drain(self) -> None:
        if self.strategy is not Strategy.DRAIN:
            return
        if self.listeners is None:
            raise Unsupported("half-open connections cannot be seen here", hint="draining needs BTF and Linux 5.9")
        timeout_s = self.plan.queue_drain_timeout_s
        if not wait_until(lambda: self._waiting(self._old_cookies()) == Queues(accept_queue=0, half_open=0), timeout_s):
            left = self._waiting(self._old_cookies())
            raise ToolError(
                f"the old listeners still hold {left.accept_queue} queued and {left.half_open} half-open connections "
                f"after {timeout_s:g} s",
                hint="--drain-timeout gives them longer; SYN+ACK retries take 63 s by default",
            )

    # stop: as the old listeners close, the kernel moves what they hold

    def _stop(self) -> None:
        if self.plan.run is not None:
            self._release_copies()
        else:
            if not self.stop_asked:
                self._ask_to_stop()
            if not wait_until(lambda: not self._still_listening(), self.plan.stop_timeout_s):
                raise self._does_not_stop()
        self.stopped_at = time.monotonic()
        if self.listeners is not None:
            wait_until(lambda: not self._half_open_behind(), _HALF_OPEN_S)

    def _ask_to_stop(self) -> None:
        self.queued = self._waiting(self._old_cookies())
        self.old_side = self._find_old_side()
        self._save()
        if self.plan.stop_command:
            sides.run(self.plan.stop_command, self.plan.stop_timeout_s, "the stop command")
        else:
            sides.terminate([process.pid for process in self.old if process.runs()], self.plan.stop_signal)
        self.stop_asked = True
        self._save()

    def _does_not_stop(self) -> ToolError:
        if self.migrate_req_before == "0":
            self._warn("net.ipv4.tcp_migrate_req stays on: the old listeners need it when they close")
        return ToolError(
            f"the old side (process {', '.join(map(str, self.old_pids))}) still listens "
            f"{self.plan.stop_timeout_s:g} s after it was told to stop; the new generation is working",
            hint="stop it by hand: as its listeners close, their connections move",
        )

    def _release_copies(self) -> None:
        """Close our copies once the server has closed its own, and keep what it did not close."""
        wait_until(self._settled, self.plan.stop_timeout_s)
        self.queued = self._waiting(self._old_cookies())
        for group in self.groups:
            survivors = group.held_by_others()
            if survivors:
                self._warn(f"{group.endpoint}: the server kept {len(survivors)} of its listeners")
                group.adopt(survivors, self.old_copies[group.endpoint])
        self.copies.close()

    def _settled(self) -> bool:
        """Whether the old listeners are let go, or the command is over and keeps them."""
        assert self.started is not None
        over_s = self.started.over_for_s()
        return (over_s is not None and over_s >= _INHERIT_S) or not any(group.held_by_others() for group in self.groups)

    # leftovers: what the old side has accepted lives on

    def _leftovers(self) -> None:
        present = [discover.now(group.endpoint).subset(group.new) for group in self.groups]
        serving = {holder.pid for found in present for member in found.members for holder in member.holders}
        side = [process for process in self.old_side if process.pid not in serving and process.runs()]
        if not side:
            self.leftovers = Leftovers(
                connections=0,
                ended=0,
                left=0,
                waited_s=0.0,
                older_than_s=round(time.monotonic() - self.stopped_at, 3),
                idle_min_s=None,
                idle_max_s=None,
            )
            return
        try:
            with OldConnections([group.endpoint for group in self.groups], side) as connections:
                self.leftovers = leftovers.settle(
                    connections,
                    self.plan.leftovers_timeout_s,
                    self.plan.kill_leftovers,
                    self.stopped_at,
                    self.progress.note,
                )
        except (Unsupported, MissingCapability) as error:
            self._warn(f"the old side's accepted connections cannot be seen: {error.message}")

    # prove: the counters of the program and of the kernel

    def _tidy(self) -> None:
        self._restore_sysctl()
        for group in self.groups:
            group.register_late(self._is_new)
            group.forget_old_generation()

    def _restore_sysctl(self) -> None:
        if self.migrate_req_before is None or self.migrate_req_before == "1":
            return
        if self.listeners is None or self._half_open_behind():
            self._warn("net.ipv4.tcp_migrate_req stays on: half-open connections of the old side may still need it")
            return
        if sysctl.read(sysctl.TCP_MIGRATE_REQ) != self.migrate_req_before:  # where it could not be set there is no need
            sysctl.write(sysctl.TCP_MIGRATE_REQ, self.migrate_req_before)
        self.migrate_req_before = None

    def _report(self, result: str, migrated: Migrated) -> Reload:
        counted = mib.read().since(self.mib_before)
        return Reload(
            endpoint=str(self.groups[0].endpoint) if len(self.groups) == 1 else str(self.endpoint),
            result=result,
            strategy=self.strategy,
            old=self._side(old=True),
            new=self._side(old=False),
            queued_at_stop=self.queued,
            migrated=migrated,
            lost=Lost(
                migrate_failures=counted.TCPMigrateReqFailure,
                listen_drops=counted.ListenDrops,
                listen_overflows=counted.ListenOverflows,
                aborted_accepted=counted.TCPAbortOnClose,
            ),
            steps=tuple(self.steps),
            switch_us=self.switch_us,
            duration_s=round(time.perf_counter() - self.begun, 4),
            warnings=tuple(self.warnings),
            canary=tuple(self.canary),
            leftovers=self.leftovers,
        )

    def _side(self, old: bool) -> Side:
        first = self.groups[0]
        cookies = tuple(cookie for group in self.groups for cookie in (group.old_cookies if old else group.new))
        if old:
            return Side(generation=first.old_generation, pids=self.old_pids, listeners=cookies)
        owners = tuple(sorted(self._owners(cookies)))
        return Side(generation=first.new_generation or first.old_generation, pids=owners, listeners=cookies)

    def _migrated(self) -> Migrated:
        total = mib.read().since(self.mib_before).TCPMigrateReqSuccess
        deltas = [
            group.state.counters().since(group.counters_before)
            for group in self.groups
            if group.state is not None and group.counters_before is not None
        ]
        if not deltas:
            return Migrated(established=None, syn_recv=None, new_syn_recv=None, total=total)
        return Migrated(
            established=sum(delta.migrated_established for delta in deltas),
            syn_recv=sum(delta.migrated_syn_recv for delta in deltas),
            new_syn_recv=sum(delta.migrated_new_syn_recv for delta in deltas),
            total=total,
        )

    # roll back: the old generation works on, the new side goes

    def abort(self) -> Reload:
        """Roll back what another run left, unless the old side cannot work on."""
        where = f"reload {self.endpoint} --resume"
        if self.step in _NO_WAY_BACK:
            raise Conflict("the old side has been told to stop, so there is no way back", hint=f"finish it: {where}")
        listening = self._still_listening()
        if not all(listening.intersection(group.old_cookies) for group in self.groups):
            raise Conflict(
                "the old side is gone, so there is no way back", hint=f"finish it: {where}; or forget it: detach"
            )
        with self.interrupts.shielded(deliver=False):
            left, migrated = self._undo_as_step()
        if left:
            raise ToolError(left)
        return self._report("rolled-back", migrated)

    def _roll_back(self, error: ToolError | KeyboardInterrupt) -> NoReturn:
        gone = self.plan.run is not None and not all(group.held_by_others() for group in self.groups)
        left, migrated = self._undo_as_step(gone)
        raise self._undone(error, gone, left, migrated) from error

    def _undo_as_step(self, gone: bool = False) -> tuple[str, Migrated]:
        """Undo, but for a --run command that has stopped the old side; then nothing is interrupted any more."""
        self.progress.begin(_ROLL_BACK)
        start = time.perf_counter()
        self.step = _ROLL_BACK
        with contextlib.suppress(ToolError):
            self._save()
        left, migrated = ("", self._migrated()) if gone else self._undo()
        self._restore_sysctl()
        step = Step(
            name=_ROLL_BACK,
            duration_s=round(time.perf_counter() - start, 4),
            outcome="failed" if left else "done",
            detail=left,
        )
        self.steps.append(step)
        self.progress.end(step)
        self.journal.remove()
        return left, migrated

    def _undo(self) -> tuple[str, Migrated]:
        """Switch back, stop the new side, forget its generation. Returns what could not be undone."""
        for group in self.groups:
            group.switch_back()
        left = self._end_new_side()
        migrated = self._migrated()
        for group in self.groups:
            group.forget_new_generation(self.listeners)
        return left, migrated

    def _undone(self, error: ToolError | KeyboardInterrupt, gone: bool, left: str, migrated: Migrated) -> ToolError:
        """What to tell: the plain error if nothing had begun, or how the roll-back ended."""
        if isinstance(error, ToolError) and self.started is None and not any(group.new for group in self.groups):
            return error
        what = error.message if isinstance(error, ToolError) else "interrupted"
        hint, log = (error.hint, error.log) if isinstance(error, ToolError) else (None, None)
        if gone:
            return ToolError(f"{what}; the old side has stopped already, so there is no way back", hint=hint, log=log)
        text = f"{what}; rolled back, the old side is working as before" + (f"; {left}" if left else "")
        kind = RolledBack if isinstance(error, ToolError) else Interrupted
        return kind(text, hint=hint, log=log, report=self._report("rolled-back", migrated))

    def _end_new_side(self) -> str:
        """Stop what was to become the new side; what it already holds moves back. Returns what is left."""
        self.copies.close()
        self._count_new()
        new = self._new_cookies()
        owners = self._owners(tuple(new))
        if self.started is not None and not self.started.is_over():
            owners.add(self.started.pid)
        owners -= set(self.old_pids)
        if self.strategy is Strategy.DRAIN:
            wait_until(lambda: self._waiting(new).accept_queue == 0, self.plan.health_timeout_s)
        sides.end(sorted(owners))
        if not wait_until(lambda: not (self._queues().keys() & new), self.plan.stop_timeout_s):
            return f"the new side (process {', '.join(map(str, sorted(owners)))}) still listens"
        return ""
