"""start: the new side listens in every group that it is to take over, and in no other one on the same ports."""

from __future__ import annotations

import signal

from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.reload import sides, ways
from reuseport_tool.reload.saving import save
from reuseport_tool.reload.sides import Newcomers
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.survey import held_by
from reuseport_tool.reload.world import World

_SETTLE_S = 0.3  # no further listener for so long: the new side has all it opens, where nobody knows how many
_FEWER_S = 1.0  # the same while it has fewer than the old side: its workers may come one after the other
_WRONG_S = 0.03  # a server opens all its groups within so long: until then a wrong one may be just the first
_OVER_S = 2.0  # a --run command is over for so long and nothing changed: the server kept its listeners


def start(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when the new side does not come to listen as it should, UsageError for no such program."""
    # Before the new side runs: it is told of every listener that it opens.
    with world.listeners.watched([group.endpoint for group in state.kept]) as told:
        if state.plan.new_pid is None and not _is_started(state, world):
            state = _begin(state, world)
        watch = _Watch(state, world)
        done = watch.replaced if state.plan.run is not None else watch.complete
        in_time = world.clock.wait(done, state.plan.start_timeout_s, told)
        state = sides.new_side(sides.find_new(state, world, watch.seen()), world)
        if not in_time:
            _check_late(state, world)
        if state.plan.run is not None and state.new_cookies:
            watch.counted_at = world.clock.now_s()
            world.clock.wait(watch.settled, state.plan.start_timeout_s, told)
            state = sides.find_new(state, world)
    state = save(state, world)
    for group in state.groups:
        ways.of(group).check(group, world)
    return state


def _is_started(state: ReloadState, world: World) -> bool:
    """Whether the command that an earlier run started is at work, or has been."""
    if state.started is None:
        return False
    tree = world.processes.tree()
    return bool(sides.new_processes(state, world, tree)) or bool(sides.find_new(state, world).new_cookies)


def _begin(state: ReloadState, world: World) -> ReloadState:
    """No server ever runs that the journal does not know: the command waits until it is written down."""
    command = state.plan.command if state.plan.command is not None else state.plan.run or ""
    with world.clock.held_back():
        started = world.processes.start(command, state.plan.output, state.mark)
        state = save(state, world, started=started.identity, new_side=(started.identity,), output=started.output)
        world.processes.release()
    world.tell.note(f"started process {started.identity.pid}: {shown(state)}")
    if state.plan.output is None:
        where = started.output or "this terminal, and fails when you close that: --output FILE keeps it"
        world.tell.note(f"its output goes to {where}")
    return state


def shown(state: ReloadState) -> str:
    """The command of the new side."""
    return " ".join(state.plan.command) if state.plan.command else state.plan.run or ""


class _Watch:
    """What the new side has come to so far."""

    def __init__(self, state: ReloadState, world: World) -> None:
        self._state = state
        self._world = world
        self._newcomers = Newcomers(state, world)
        self._found: dict[Endpoint, tuple[int, ...]] = {}
        self._wrong_since: float | None = None
        self._over_since: float | None = None
        self.counted_at = world.clock.now_s()

    def seen(self) -> Newcomers | None:
        """What it has seen; None with --run, whose command may have passed its listeners on meanwhile."""
        return self._newcomers if self._state.plan.run is None else None

    def _look(self) -> int:
        """Count the new listeners. Returns their number, after noting when it last changed."""
        found = self._newcomers.look()
        if found != self._found:
            self._found, self.counted_at = found, self._world.clock.now_s()
        return sum(map(len, found.values()))

    def _missing(self) -> list[Endpoint]:
        wanted = self._state.plan.listeners or 1
        return [group for group, found in self._found.items() if len(found) < wanted]

    def settled(self) -> bool:
        """Whether there are as many as were asked for; or as the old side has, and a process waits on each; or none has
        come for a while."""
        self._look()
        if self._state.plan.listeners is not None:
            return not self._missing()
        quiet_s = self._world.clock.now_s() - self.counted_at
        if any(len(self._found[group.endpoint]) < len(group.old) for group in self._state.kept):
            return quiet_s >= _FEWER_S
        return quiet_s >= _SETTLE_S or self._all_accept()

    def _all_accept(self) -> bool:
        """Whether the new side accepts by all its listeners.

        A program that only tries its configuration, as `nginx -t` does, opens them too, and closes them at once.
        """
        cookies = {cookie for found in self._found.values() for cookie in found}
        return cookies <= sides.accepting(self._state, self._world, cookies)

    def complete(self) -> bool:
        """Raises ToolError as soon as it is certain that the new side will not come to listen as it should."""
        found = self._look()
        self._check_wrong()
        missing = self._missing()
        if missing:
            self._check_alive(missing[0], found)
            return False
        return self._state.plan.listeners is not None or self.settled()

    def _check_wrong(self) -> None:
        """Connections may go to a wrong group from its listen() on, and would be lost when it is closed."""
        ports = {group.port for group in self._missing()}
        wrong = [group for group in self._newcomers.wrong if group.port in ports]
        if not wrong:
            self._wrong_since = None
            return
        now = self._world.clock.now_s()
        self._wrong_since = now if self._wrong_since is None else self._wrong_since
        if now - self._wrong_since >= _WRONG_S:
            expected = [group for group in self._missing() if group.port == wrong[0].port]
            self._end_at_once(self._newcomers.wrong[wrong[0]])
            raise ToolError(
                f"the new server listens on {wrong[0]} and not on {expected[0]}: these are two groups for the kernel",
                hint="give the new server the same address, port, device and IPV6_V6ONLY",
            )

    def _end_at_once(self, pids: set[int]) -> None:
        """Before the roll-back, which takes longer: the wrong listener gets connections that it will not serve."""
        if self._state.given is None:
            tree = self._world.processes.tree()
            mine = pids & sides.new_processes(self._state, self._world, tree)
            for process in tree.identities(mine):
                self._world.processes.signal(process, signal.SIGTERM)

    def _check_alive(self, group: Endpoint, found: int) -> None:
        """Raises ToolError when the new side has ended."""
        if self._state.given is not None:
            if not self._world.processes.runs(self._state.given):
                raise never_listened(self._state, self._world, group, f"process {self._state.given.pid} has ended")
            return
        code = self._world.processes.exit_code()
        if code and not found:
            raise never_listened(self._state, self._world, group, f"the new server {ending(code)}")
        assert self._state.started is not None
        if code is not None or not self._world.processes.runs(self._state.started):
            tree = self._world.processes.tree()
            if not sides.new_processes(self._state, self._world, tree):
                raise never_listened(self._state, self._world, group, "the new server has ended without a listener")

    def replaced(self) -> bool:
        """Whether --run's command has brought new listeners, or is over and the server kept the old ones."""
        found = self._look()
        self._check_wrong()
        code = self._world.processes.exit_code()
        if found:
            return True
        if code:
            raise ToolError(f"the --run command {ending(code)}: {shown(self._state)}")
        assert self._state.started is not None
        if code is None and self._world.processes.runs(self._state.started):
            return False
        now = self._world.clock.now_s()
        self._over_since = now if self._over_since is None else self._over_since
        return now - self._over_since >= _OVER_S and self._all_are_held()

    def _all_are_held(self) -> bool:
        held = sides.held_by_others(self._state, self._world)
        return all(held.intersection(group.old) for group in self._state.kept)


def ending(code: int) -> str:
    """How a process ended, by its exit code as Python has it."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _check_late(state: ReloadState, world: World) -> None:
    """Raises ToolError when listeners are missing at the end of --start-timeout."""
    after = f"within {state.plan.start_timeout_s:g} s"
    for group in state.kept:
        if not group.new:
            raise never_listened(state, world, group.endpoint, f"no new listener {after}")
        if state.plan.listeners is not None and len(group.new) < state.plan.listeners:
            raise ToolError(f"{len(group.new)} of {state.plan.listeners} new listeners on {group.endpoint} {after}")


def never_listened(state: ReloadState, world: World, group: Endpoint, what: str) -> ToolError:
    """The error for a group without new listeners, and what the new side does instead."""
    processes = sides.new_processes(state, world, world.processes.tree())
    present = world.listeners.everything(Protocol.TCP)
    kept = {each.endpoint for each in state.groups}
    elsewhere = [
        str(other)
        for other, members in present.items()
        if other not in kept and any(held_by(member, processes) for member in members)
    ]
    if elsewhere:
        return ToolError(
            f"{what}: it listens on {', '.join(elsewhere)} and not on {group}",
            hint="give the new server the same address and port, or drop the group with --drop",
        )
    if state.given is not None:
        hint = f"process {state.given.pid} or one below it must listen there; 'status' shows who holds each listener"
        return ToolError(f"{what} on {group}", hint=hint)
    strangers = _strangers(state, world, group, processes)
    if strangers:
        return Conflict(
            f"{what} on {group}; {strangers} listens there but is not the new server: it does not descend from "
            "the command",
            hint="--new-pid PID is for a server started elsewhere, --run 'COMMAND' for one that replaces itself",
        )
    uids = {entry.uid for entry in world.listeners.on([group]).get(group, ())}
    hint = f"it needs SO_REUSEPORT, and uid {', '.join(map(str, sorted(uids)))}, which owns the present listeners"
    where = f"{state.output} tells why" if state.output else "its output tells why"
    return ToolError(f"{what} on {group}", hint=f"{where}; {hint}")


def _strangers(state: ReloadState, world: World, group: Endpoint, processes: set[int]) -> str:
    """Who else opened a listener of the group since the reload began."""
    before = {cookie for each in state.groups for cookie in (*each.before, *each.old)}
    entries = [entry for entry in world.listeners.on([group]).get(group, ()) if entry.cookie not in before]
    members = world.listeners.with_holders(entries, None)
    pids = sorted({holder.pid for member in members for holder in member.holders} - processes)
    return ", ".join(f"process {pid} ({world.processes.command(pid)})" for pid in pids)
