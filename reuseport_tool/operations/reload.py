"""The reload: a transaction that hands a port from one generation of a server to the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from reuseport_tool.errors import (
    Conflict,
    Interrupted,
    NotFound,
    RolledBack,
    ToolError,
    Unsupported,
)
from reuseport_tool.kernel import bpffs, iterator, mib, processes, sockets, sysctl
from reuseport_tool.models import (
    Counters,
    Endpoint,
    Lost,
    Migrated,
    Queues,
    Reload,
    Side,
    Step,
    Strategy,
)
from reuseport_tool.operations import attach, discover, preflight, reload_plan, sides, state
from reuseport_tool.operations.discover import Found
from reuseport_tool.operations.health import AcceptGate, probe
from reuseport_tool.operations.interrupts import Interrupts
from reuseport_tool.operations.reload_plan import Plan, Progress
from reuseport_tool.operations.sides import Started
from reuseport_tool.operations.state import State
from reuseport_tool.operations.waiting import wait_until, wait_until_stable

_SETTLE_S = 0.3  # no further listener for so long: the new side has all it opens
_INHERIT_S = 2.0  # a --run command is over for so long and nothing changed: the server kept its listeners
_HALF_OPEN_S = 5.0  # how long the proof waits for half-open connections of the closed listeners


@dataclass
class _Group:
    """One group on its way through the reload."""

    endpoint: Endpoint
    folder: Path
    old: Found
    state: State | None = None
    attached_here: bool = False
    old_generation: int | None = None
    new_generation: int | None = None
    new: list[int] = field(default_factory=list)
    seen: set[int] | None = None
    switched: bool = False

    @property
    def old_cookies(self) -> set[int]:
        return set(self.old.cookies)


def reload(endpoint: Endpoint, plan: Plan, root: Path | None, progress: Progress) -> Reload:
    """Replace the server behind every group that the endpoint means.

    Raises:
        UsageError: the plan contradicts itself, or the endpoint is UDP.
        NotFound: nothing listens there, or a process of the plan does not exist.
        Unsupported: the strategy does not work on this kernel.
        Conflict: locked, or a foreign program.
        RolledBack: it failed, and the old generation is working as before.
        Interrupted: the same, after an interrupt.
        ToolError: it failed after the old side was stopped, which cannot be undone.
    """
    reload_plan.check(endpoint, plan)
    strategy = reload_plan.choose_strategy(plan, progress.warn)
    found = discover.groups(endpoint)
    folder = bpffs.find_or_mount(root)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        groups = [
            _Group(
                group.endpoint,
                stack.enter_context(state.locked(folder, group.endpoint, plan.lock_timeout_s)),
                _old_members(group, plan),
            )
            for group in found
        ]
        run = _Run(endpoint, plan, strategy, groups, progress, interrupts)
        stack.callback(run.close)
        return run.execute()


def _old_members(group: Found, plan: Plan) -> Found:
    """The listeners to be replaced: those of the old processes, or all that are not the new one's."""
    members = tuple(
        member
        for member in group.members
        if (not plan.old_pids or _held_below(member, plan.old_pids))
        and not (plan.new_pid and _held_below(member, (plan.new_pid,)))
    )
    if not members:
        whose = f"of process {', '.join(map(str, plan.old_pids))}" if plan.old_pids else "besides the new ones"
        raise NotFound(f"{group.endpoint} has no listeners {whose}")
    return Found(group.endpoint, members)


def _held_below(member: discover.Member, pids: Sequence[int]) -> bool:
    return any(processes.is_descendant(holder.pid, pid) for holder in member.holders for pid in pids)


class _Run:
    """The state of one reload; each step is a method, execute() has their order."""

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        strategy: Strategy,
        groups: list[_Group],
        progress: Progress,
        interrupts: Interrupts,
    ) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.strategy = strategy
        self.groups = groups
        self.progress = progress
        self.interrupts = interrupts
        self.steps: list[Step] = []
        self.warnings: list[str] = []
        self.started: Started | None = None
        self.migrate_req_before: str | None = None
        self.switch_us: float | None = None
        self.queued = Queues(0, None)
        self.copies = ExitStack()
        self.old_copies: dict[Endpoint, dict[int, int]] = {}
        self.begun = time.perf_counter()
        self.mib_before = mib.read()
        self.counters_before: dict[Endpoint, Counters] = {}
        self.old_pids = tuple(plan.old_pids) or tuple(
            processes.topmost({holder.pid for group in groups for m in group.old.members for holder in m.holders})
        )
        self.listeners: iterator.TcpListeners | None = None
        with contextlib.suppress(Unsupported):
            self.listeners = iterator.TcpListeners()

    def close(self) -> None:
        self.copies.close()
        if self.listeners is not None:
            self.listeners.close()
        for group in self.groups:
            if group.state is not None:
                group.state.close()

    def execute(self) -> Reload:
        try:
            with self._step("prepare"):
                self._prepare()
            with self._step("start"):
                self._start()
            with self._step("compare"):
                self._compare()
            with self._step("switch"), self.interrupts.shielded():
                self._switch()
            if self.plan.run is None:
                with self._step("health"):
                    self._health()
                with self._step("drain", skip=self.strategy is not Strategy.DRAIN):
                    self._drain()
        except (ToolError, KeyboardInterrupt) as error:
            with self.interrupts.shielded(deliver=False):
                self._roll_back(error)
        # From here the old side is being stopped: there is no way back, so interrupts wait for the end.
        with self.interrupts.shielded(deliver=False):
            with self._step("stop"):
                self._stop()
            if self.plan.run is not None:
                with self._step("health"):
                    self._health()
            with self._step("prove"):
                self._tidy()
            return self._report("reloaded", self._migrated())

    @contextlib.contextmanager
    def _step(self, name: str, skip: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        self.progress.begin(name)
        outcome, detail = "skipped" if skip else "done", ""
        try:
            yield
        except (ToolError, KeyboardInterrupt) as error:
            outcome, detail = "failed", str(error) or "interrupted"
            raise
        finally:
            step = Step(name, round(time.perf_counter() - start, 4), outcome, detail)
            self.steps.append(step)
            self.progress.end(step)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.progress.warn(text)

    # prepare: from here connections that are queued already are safe

    def _prepare(self) -> None:
        if self.strategy is Strategy.SYSCTL:
            self._prepare_sysctl()
        else:
            for group in self.groups:
                self._prepare_program(group)
        if self.plan.run is not None:
            # Held until the new generation works: whatever the command closes stays open that long.
            self.old_copies = {
                group.endpoint: self.copies.enter_context(discover.descriptors(group.old.members))
                for group in self.groups
            }

    def _prepare_sysctl(self) -> None:
        for group in self.groups:
            if attach.attached_program(group.old) is not None:
                raise Conflict(
                    f"{group.endpoint} has a program, which decides instead of the sysctl",
                    hint="use --strategy migrate, or detach the program first",
                )
        before = sysctl.read(sysctl.TCP_MIGRATE_REQ)
        with self.interrupts.shielded():
            sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")
            self.migrate_req_before = before

    def _prepare_program(self, group: _Group) -> None:
        with self.interrupts.shielded():
            group.state, result, _ = attach.attach_group(group.old, self.plan.policy, None, group.folder)
            group.attached_here = result == "attached"
        group.old_generation = group.state.working
        self.counters_before[group.endpoint] = group.state.counters()

    # start: the new side listens

    def _start(self) -> None:
        if self.plan.new_pid is None:
            with self.interrupts.shielded():
                self.started = Started(self.plan.command or self.plan.run or "", self.plan.output)
                self.progress.note(f"started process {self.started.pid}: {self.started.shown}")
        if self.plan.run is not None:
            self._await_replacement()
        else:
            self._await_listeners()

    def _await_listeners(self) -> None:
        """Wait until every group has its new listeners."""
        for group in self.groups:
            wanted = self.plan.listeners

            def count(group: _Group = group) -> int:
                failure = self.started.failure() if self.started else None
                if failure and not self._find_new(group):
                    raise self._never_listened(group, f"the new server {failure}")
                return self._find_new(group)

            if not wait_until_stable(count, wanted, _SETTLE_S, self.plan.start_timeout_s) and not group.new:
                raise self._never_listened(group, f"no new listener within {self.plan.start_timeout_s:g} s")
            if wanted is not None and len(group.new) < wanted:
                raise ToolError(
                    f"{len(group.new)} of {wanted} new listeners on {group.endpoint} "
                    f"within {self.plan.start_timeout_s:g} s"
                )

    def _find_new(self, group: _Group) -> int:
        """Look for listeners that were not there before; how many there are."""
        present = discover.sockets_in(group.endpoint)
        entries = [entry for entry in present if entry.cookie not in group.old_cookies]
        cookies = {entry.cookie for entry in entries}
        if cookies != group.seen:
            members = discover.with_holders({group.endpoint: entries})[0].members
            group.new = [member.cookie for member in members if self._is_new(member)]
            # A socket without a holder is on its way from one process to another: look again.
            group.seen = cookies if all(member.holders for member in members) else None
        return len(group.new)

    def _is_new(self, member: discover.Member) -> bool:
        """Whether a listener belongs to the new side, and not to a worker that the old side started since."""
        if not member.holders or self.plan.run is not None:
            return bool(member.holders)
        if self.plan.new_pid is not None:
            return _held_below(member, (self.plan.new_pid,))
        return not _held_below(member, self.old_pids)

    def _never_listened(self, group: _Group, what: str) -> ToolError:
        pid = self.plan.new_pid or (self.started.pid if self.started else 0)
        elsewhere = sides.listening_elsewhere(pid) if pid else []
        if elsewhere:
            return ToolError(
                f"{what}: it listens on {', '.join(elsewhere)} and not on {group.endpoint}",
                hint="give the new server the very same address and port",
            )
        uid = group.old.members[0].socket.uid
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

    def _count_new(self) -> int:
        return sum(self._find_new(group) for group in self.groups)

    def _replaced(self) -> bool:
        assert self.started is not None
        if self._count_new():
            return True
        failure = self.started.failure()
        if failure:
            raise ToolError(f"the --run command {failure}: {self.started.shown}")
        over_s = self.started.over_for_s()
        return over_s is not None and over_s >= _INHERIT_S and all(map(self._held_by_others, self.groups))

    def _held_by_others(self, group: _Group) -> set[int]:
        """Cookies of the old listeners that a process besides ours has open."""
        entries = [member.socket for member in group.old.members]
        held = processes.holders([entry.inode for entry in entries])
        return {entry.cookie for entry in entries if held[entry.inode]}

    # compare: nothing is moved to a listener that would treat the connections differently

    def _compare(self) -> None:
        for group in self.groups:
            if not group.new:
                continue
            found = discover.now(group.endpoint)
            new = found.subset(group.new)
            if not new.members:
                raise ToolError(f"the new listeners on {group.endpoint} are gone")
            differences = [self._compare_options(group, new), self._compare_capacity(found, group, new)]
            for text in (line for difference in differences for line in difference.harmless):
                self._warn(f"{group.endpoint}: {text}")
            unsafe = [line for difference in differences for line in difference.unsafe]
            if unsafe and not self.plan.force:
                raise ToolError(
                    f"unsafe to move connections on {group.endpoint}: {'; '.join(unsafe)}",
                    hint="give the new server the same options, or use --force",
                )
            for text in unsafe:
                self._warn(f"{group.endpoint}: {text} (--force)")

    def _compare_options(self, group: _Group, new: Found) -> preflight.Differences:
        with discover.descriptors(new.members[:1]) as fds:
            after = sockets.listener_options(next(iter(fds.values())))
        if self.plan.run is not None:
            before = sockets.listener_options(next(iter(self.old_copies[group.endpoint].values())))
        else:
            with discover.descriptors(group.old.members[:1]) as fds:
                before = sockets.listener_options(next(iter(fds.values())))
        return preflight.compare(before, after)

    @staticmethod
    def _compare_capacity(found: Found, group: _Group, new: Found) -> preflight.Differences:
        old = found.subset(group.old.cookies)
        queued = sum(member.socket.accept_queue or 0 for member in old.members)
        return preflight.compare_capacity(queued, [member.socket.backlog or 0 for member in new.members])

    # switch: the commit

    def _switch(self) -> None:
        for group in self.groups:
            if group.state is not None and group.new:
                self._fill_generation(group, group.state)
        for group in self.groups:
            if group.state is not None and group.new_generation is not None:
                group.switched = True
                # Commit point: from here new connections reach the new generation.
                took_us = group.state.switch(group.new_generation)
                self.switch_us = max(self.switch_us or 0.0, round(took_us, 1))

    def _fill_generation(self, group: _Group, opened: State) -> None:
        members = discover.now(group.endpoint).subset(group.new).members
        if not members:
            raise ToolError(f"the new listeners on {group.endpoint} are gone")
        number = opened.next_generation()
        opened.create_generation(number)
        group.new_generation = number
        with discover.descriptors(members) as fds:
            for cookie, fd in fds.items():
                opened.release(cookie)  # somebody may have registered it with the old ones
                opened.add(number, fd)

    # health: the new generation accepts

    def _health(self) -> None:
        if self.plan.probe:
            for group in self.groups:
                probe(group.endpoint)
        gate = AcceptGate({cookie for group in self.groups for cookie in group.new})
        if not wait_until(lambda: gate.passed(self._queues()), self.plan.health_timeout_s):
            raise ToolError(
                f"the new server does not accept: {gate.waiting()} after {self.plan.health_timeout_s:g} s",
                hint="--health-timeout gives it longer; --no-probe opens no connection of the tool's own",
            )
        if self.plan.health_command:
            sides.run(self.plan.health_command, self.plan.health_timeout_s, "the health command")

    def _queues(self) -> dict[int, int]:
        """Accept queue of each listener of our groups, by cookie."""
        return {
            entry.cookie: entry.accept_queue or 0
            for group in self.groups
            for entry in discover.sockets_in(group.endpoint)
        }

    # drain: wait until the old listeners hold nothing

    def _drain(self) -> None:
        if self.strategy is not Strategy.DRAIN:
            return
        if self.listeners is None:
            raise Unsupported("half-open connections cannot be seen here", hint="draining needs BTF and Linux 5.9")
        if not wait_until(lambda: self._waiting(self._old_cookies()) == Queues(0, 0), self.plan.drain_timeout_s):
            left = self._waiting(self._old_cookies())
            raise ToolError(
                f"the old listeners still hold {left.accept_queue} queued and {left.half_open} half-open connections "
                f"after {self.plan.drain_timeout_s:g} s",
                hint="--drain-timeout gives them longer; SYN+ACK retries take 63 s by default",
            )

    def _waiting(self, cookies: set[int]) -> Queues:
        """What listeners hold now."""
        queues = self._queues()
        half_open = None
        if self.listeners is not None:
            infos = self.listeners.read().listeners
            half_open = sum(infos[cookie].half_open for cookie in cookies & infos.keys())
        return Queues(sum(queues.get(cookie, 0) for cookie in cookies), half_open)

    def _old_cookies(self) -> set[int]:
        return {cookie for group in self.groups for cookie in group.old.cookies}

    # stop: as the old listeners close, the kernel moves what they hold

    def _stop(self) -> None:
        if self.plan.run is not None:
            self._release_copies()
        else:
            self.queued = self._waiting(self._old_cookies())
            if self.plan.stop_command:
                sides.run(self.plan.stop_command, self.plan.stop_timeout_s, "the stop command")
            else:
                sides.terminate(self.old_pids, self.plan.stop_signal)
            if not wait_until(lambda: not self._still_listening(), self.plan.stop_timeout_s):
                raise ToolError(
                    f"the old side (process {', '.join(map(str, self.old_pids))}) still listens "
                    f"{self.plan.stop_timeout_s:g} s after it was told to stop; the new generation is working",
                    hint="stop it by hand: as its listeners close, their connections move",
                )
        if self.listeners is not None:
            wait_until(lambda: not self._half_open_behind(), _HALF_OPEN_S)

    def _still_listening(self) -> set[int]:
        present = self._queues()
        return self._old_cookies() & present.keys()

    def _half_open_behind(self) -> int:
        """Request sockets that still point at a closed old listener."""
        assert self.listeners is not None
        requests = self.listeners.read().requests
        gone = self._old_cookies() - self._still_listening()
        return sum(requests.get(cookie, 0) for cookie in gone)

    def _release_copies(self) -> None:
        """Close our copies once the server has closed its own, and keep what it did not close."""
        wait_until(self._settled, self.plan.stop_timeout_s)
        self.queued = self._waiting(self._old_cookies())
        for group in self.groups:
            survivors = self._held_by_others(group)
            if survivors:
                self._adopt(group, survivors)
                group.old = group.old.subset(tuple(group.old_cookies - survivors))
        self.copies.close()

    def _settled(self) -> bool:
        """Whether the old listeners are let go, or the command is over and keeps them."""
        assert self.started is not None
        over_s = self.started.over_for_s()
        return (over_s is not None and over_s >= _INHERIT_S) or not any(map(self._held_by_others, self.groups))

    def _adopt(self, group: _Group, survivors: set[int]) -> None:
        """Move listeners that the server goes on using into the new generation."""
        self._warn(f"{group.endpoint}: the server kept {len(survivors)} of its listeners")
        if group.state is None or group.new_generation is None or group.old_generation is None:
            group.new += sorted(survivors)
            return
        for slot, cookie in group.state.slots(group.old_generation):
            if cookie in survivors:
                group.state.remove(group.old_generation, slot)
                group.state.add(group.new_generation, self.old_copies[group.endpoint][cookie])
                group.new.append(cookie)

    # prove: the counters of the program and of the kernel

    def _tidy(self) -> None:
        self._restore_sysctl()
        for group in self.groups:
            self._register_late(group)
            _forget_if_empty(group.state, group.old_generation)

    def _report(self, result: str, migrated: Migrated) -> Reload:
        counted = mib.read().since(self.mib_before)
        return Reload(
            str(self.groups[0].endpoint) if len(self.groups) == 1 else str(self.endpoint),
            result,
            self.strategy,
            self._side(old=True),
            self._side(old=False),
            self.queued,
            migrated,
            Lost(counted.TCPMigrateReqFailure, counted.ListenDrops, counted.ListenOverflows, counted.TCPAbortOnClose),
            tuple(self.steps),
            self.switch_us,
            round(time.perf_counter() - self.begun, 4),
            tuple(self.warnings),
        )

    def _register_late(self, group: _Group) -> None:
        """Register listeners that the new side opened after the switch."""
        if group.state is None or group.new_generation is None:
            return
        before = set(group.new)
        self._find_new(group)
        late = discover.now(group.endpoint).subset(tuple(set(group.new) - before))
        group.new = sorted(before | set(group.new))
        with discover.descriptors(late.members) as fds:
            for fd in fds.values():
                group.state.add(group.new_generation, fd)

    def _restore_sysctl(self) -> None:
        if self.migrate_req_before is None or self.migrate_req_before == "1":
            return
        if self.listeners is None or self._half_open_behind():
            self._warn("net.ipv4.tcp_migrate_req stays on: half-open connections of the old side may still need it")
            return
        sysctl.write(sysctl.TCP_MIGRATE_REQ, self.migrate_req_before)
        self.migrate_req_before = None

    def _side(self, old: bool) -> Side:
        first = self.groups[0]
        cookies = tuple(cookie for group in self.groups for cookie in (group.old.cookies if old else group.new))
        if old:
            return Side(first.old_generation, self.old_pids, cookies)
        owners = tuple(sorted(self._owners(cookies)))
        return Side(first.new_generation or first.old_generation, owners, cookies)

    def _owners(self, cookies: Sequence[int]) -> set[int]:
        """The topmost processes that hold these listeners now."""
        present = {group.endpoint: discover.sockets_in(group.endpoint) for group in self.groups}
        return {pid for found in discover.with_holders(present) for pid in found.subset(cookies).owners()}

    def _migrated(self) -> Migrated:
        total = mib.read().since(self.mib_before).TCPMigrateReqSuccess
        if not self.counters_before:
            return Migrated(None, None, None, total)
        deltas = [
            group.state.counters().since(self.counters_before[group.endpoint])
            for group in self.groups
            if group.state is not None
        ]
        return Migrated(
            sum(delta.migrated_established for delta in deltas),
            sum(delta.migrated_syn_recv for delta in deltas),
            sum(delta.migrated_new_syn_recv for delta in deltas),
            total,
        )

    # roll back: the old generation works on, the new side goes

    def _roll_back(self, error: ToolError | KeyboardInterrupt) -> NoReturn:
        self.progress.begin("roll back")
        start = time.perf_counter()
        gone = self.plan.run is not None and not all(map(self._held_by_others, self.groups))
        left, migrated = ("", self._migrated()) if gone else self._undo()
        self._restore_sysctl()
        step = Step("roll back", round(time.perf_counter() - start, 4), "failed" if left else "done", left)
        self.steps.append(step)
        self.progress.end(step)
        raise self._undone(error, gone, left, migrated) from error

    def _undo(self) -> tuple[str, Migrated]:
        """Switch back, stop the new side, forget its generation. Returns what could not be undone."""
        for group in self.groups:
            if group.switched and group.state is not None and group.old_generation is not None:
                group.state.switch(group.old_generation)
        left = self._end_new_side()
        migrated = self._migrated()
        for group in self.groups:
            self._forget_generation(group)
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
        for group in self.groups:
            self._find_new(group)
        new = {cookie for group in self.groups for cookie in group.new}
        owners = self._owners(tuple(new))
        if self.started is not None and self.started.exit_code() is None:
            owners.add(self.started.pid)
        owners -= set(self.old_pids)
        if self.strategy is Strategy.DRAIN:
            wait_until(lambda: self._waiting(new).accept_queue == 0, self.plan.health_timeout_s)
        sides.end(sorted(owners))
        if not wait_until(lambda: not (self._queues().keys() & new), self.plan.stop_timeout_s):
            return f"the new side (process {', '.join(map(str, sorted(owners)))}) still listens"
        return ""

    def _forget_generation(self, group: _Group) -> None:
        if group.state is None:
            return
        if group.new_generation is not None:
            group.state.remove_generation(group.new_generation)
        if group.attached_here:
            group.state.close()
            group.state = None
            with contextlib.suppress(NotFound), discover.descriptors(group.old.members[:1]) as fds:
                sockets.detach_program(next(iter(fds.values())))
            state.clean(group.folder)


def _forget_if_empty(opened: State | None, generation: int | None) -> None:
    """Unpin a generation whose listeners have all closed."""
    if opened is None or not generation or generation == opened.working:
        return
    if generation in opened.generations() and not opened.slots(generation):
        opened.remove_generation(generation)
