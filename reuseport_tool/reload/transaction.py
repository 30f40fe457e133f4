"""The reload: a transaction that hands the groups of a server from one generation to the next."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError, UsageError
from reuseport_tool.group import journals, places
from reuseport_tool.kernel import bpffs, capabilities
from reuseport_tool.kernel.commands import no_such_program
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import (
    DryRun,
    Endpoint,
    FlowMode,
    LastReload,
    PlannedGroup,
    Protocol,
    Queues,
    Reload,
    Strategy,
)
from reuseport_tool.reload import live, outcome, report, rollback, run, sides, survey
from reuseport_tool.reload import plan as reload_plan
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.state import ROLL_BACK, GroupState, ReloadState, WayName, decode
from reuseport_tool.reload.steps.compare import compare
from reuseport_tool.reload.survey import Survey, Surveyed
from reuseport_tool.reload.world import World

_DNS_PORTS = (53, 853)


def reload(endpoints: Sequence[Endpoint], plan: Plan, root: Path | None, progress: Progress) -> Reload:
    """Replace the server behind every group that the endpoints mean, in all the groups that it serves.

    Raises:
        UsageError: the plan contradicts itself, or does not say what a UDP group keeps together.
        NotFound: nothing listens there, or a process of the plan does not exist.
        MissingCapability: also where the old side could not be told to stop.
        Unsupported: the strategy does not work on this kernel.
        Conflict: locked, a foreign program, an earlier reload was killed, or the old side cannot be stopped cleanly.
        RolledBack: it failed, and the old generation is working as before.
        Interrupted: the same, after an interrupt.
        ToolError: it failed after the old side was stopped, or had gone, which cannot be undone.
    """
    reload_plan.check(plan)
    strategy = reload_plan.choose_strategy(plan, progress.warn)
    folder = bpffs.find_or_mount(root)
    folders: dict[Endpoint, Place] = {}
    with ExitStack() as stack:
        world = live.world(plan, folders, progress, stack)
        found = _locked_survey(endpoints, plan, world, folder, folders, stack)
        if found.refusal is not None:
            raise found.refusal
        _watch(world, found)
        for text in found.warnings:
            world.tell.warn(text)
        return run.execute(begun(endpoints, plan, strategy, found, world), world)


def _locked_survey(
    endpoints: Sequence[Endpoint],
    plan: Plan,
    world: World,
    root: Path,
    folders: dict[Endpoint, Place],
    stack: ExitStack,
) -> Survey:
    """Look, lock what was found, and look again: whoever held a lock before us may have replaced the server.

    Raises KeyboardInterrupt at an interrupt while it waits for a lock, as nothing has begun.
    """

    def pause(seconds: float) -> None:
        world.clock.wait(lambda: False, seconds)

    while True:
        found = survey.survey(endpoints, plan, world)
        missing = [group.endpoint for group in found.groups if group.endpoint not in folders]
        if not missing:
            return found
        for group in missing:
            locked = stack.enter_context(places.locked(root, group, plan.lock_timeout_s, pause=pause))
            places.refuse_interrupted(locked, group)
            folders[group] = locked


def _watch(world: World, found: Survey) -> None:
    groups = [group.endpoint for group in found.groups]
    world.traffic.begin(groups, [group.endpoint for group in found.groups if not group.dropped])


def begun(endpoints: Sequence[Endpoint], plan: Plan, strategy: Strategy, found: Survey, world: World) -> ReloadState:
    """The first state of a reload."""
    groups = tuple(_begun_group(group, plan, strategy, world) for group in found.groups)
    if plan.new_pid and found.given is None:
        raise NotFound(f"no process {plan.new_pid}", hint="it ended: start the new server again")
    return ReloadState(
        pid=world.processes.own_pid(),
        endpoints=tuple(endpoints),
        begun_at=world.clock.wall_s(),
        step="",
        plan=plan,
        strategy=strategy,
        groups=groups,
        owners=found.owners,
        old_side=found.side,
        given=found.given,
        mib_before=world.traffic.mib(),
        queued=Queues(accept_queue=0, half_open=None),
        warnings=found.warnings,
    )


def _begun_group(group: Surveyed, plan: Plan, strategy: Strategy, world: World) -> GroupState:
    mode = _flows(group, plan, world)
    is_kept = mode is not FlowMode.NONE
    return GroupState(
        endpoint=group.endpoint,
        way=_way(group.endpoint, strategy),
        flows=mode,
        recorded_before=is_kept and world.datagrams.flow_mode(group.endpoint) in (mode, FlowMode.QUIC),
        old=tuple(member.cookie for member in group.old),
        before=tuple(member.cookie for member in group.before),
        dropped=group.dropped,
        attached_before=_is_attached(group.endpoint, world),
    )


def _way(group: Endpoint, strategy: Strategy) -> WayName:
    if group.protocol is Protocol.UDP:
        return WayName.DATAGRAMS
    return WayName.SYSCTL if strategy is Strategy.SYSCTL else WayName.PROGRAM


def _flows(group: Surveyed, plan: Plan, world: World) -> FlowMode:
    """What a UDP group keeps together. Raises UsageError where only the operator can know."""
    if group.endpoint.protocol is not Protocol.UDP or group.dropped or group.endpoint.is_shared:
        return FlowMode.NONE
    mode = plan.flows or world.datagrams.flow_mode(group.endpoint)
    if plan.run is not None and mode not in (None, FlowMode.NONE):
        raise UsageError(
            f"--run cannot keep the flows of {group.endpoint}: the old server, which knows them, has to stop first",
            hint="let the new server start beside the old one: -- COMMAND… or --new-pid PID",
        )
    if mode is not None and (plan.flows is not None or mode is not FlowMode.NONE):
        return mode
    if group.endpoint.port in _DNS_PORTS or mode is not None:
        return FlowMode.NONE
    raise UsageError(
        f"say which datagrams of {group.endpoint} belong together: a wrong guess silently loses datagrams",
        hint="--flows none if each datagram stands alone (DNS, statsd, syslog), --flows address where clients "
        "have a session (DTLS, WireGuard, games), --flows quic for QUIC",
    )


def _is_attached(group: Endpoint, world: World) -> bool:
    """Whether our program runs for a group; where the kernel does not tell, its pins say so."""
    running = world.pins.running(group)
    return running.ours if running.known else world.pins.counters(group) is not None


def resume(endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float = 0.0) -> Reload:
    """Finish a reload that was killed, from the step in which it was.

    Raises:
        NotFound: no reload of this endpoint was killed.
        Conflict: it runs, or was being rolled back, or is another user's.
        RolledBack, Interrupted, ToolError: as reload().
    """
    with _restored(endpoint, root, progress, wait_s) as (found, world):
        return resumed(found, world)


def resumed(found: ReloadState, world: World) -> Reload:
    """Go on with a state that another run saved."""
    if found.step == ROLL_BACK:
        hint = f"reload {found.endpoints[0]} --abort"
        raise Conflict("the reload was interrupted while it rolled back", hint=hint)
    world.queues.go_on(found.queues)
    return run.execute(found, world)


def abort(endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float = 0.0) -> Reload:
    """Undo a reload that was killed: the old generation works, what the reload started is ended.

    Raises:
        NotFound: no reload of this endpoint was killed.
        Conflict: it runs, or the old side has been told to stop or is gone, or it is another user's.
        ToolError: something could not be undone.
    """
    with _restored(endpoint, root, progress, wait_s) as (found, world):
        return aborted(found, world)


def aborted(found: ReloadState, world: World) -> Reload:
    """Undo what another run began, unless the old side cannot work on."""
    where = f"reload {found.endpoints[0]} --resume"
    if found.is_past:
        raise Conflict("the old side has been told to stop, so there is no way back", hint=f"finish it: {where}")
    if rollback.old_is_gone(found, world):
        raise Conflict(
            "the old side is gone, so there is no way back", hint=f"finish it: {where}; or discard it: detach"
        )
    world.queues.go_on(found.queues)
    with world.clock.held_back():
        done, problems = rollback.undo(found, world)
    made = report.made(done, world, "rolled-back")
    outcome.keep(made, done, world, "; ".join(("aborted", *problems)))
    if problems:
        raise ToolError("; ".join(problems), report=made)
    return made


@contextlib.contextmanager
def _restored(
    endpoint: Endpoint, root: Path | None, progress: Progress, wait_s: float
) -> Iterator[tuple[ReloadState, World]]:
    """The state of the reload that covers the endpoint, with the locks of all its groups."""
    folder = bpffs.find(root)
    first = interrupted(folder, endpoint)
    with ExitStack() as stack:
        folders = {
            group.endpoint: stack.enter_context(places.locked(folder, group.endpoint, wait_s)) for group in first.groups
        }
        found = interrupted(folder, endpoint)  # as it is now that nobody else changes it
        if found.begun_at != first.begun_at:
            raise Conflict(f"another reload of {endpoint} has been interrupted since", hint="look at it with: status")
        world = live.world(found.plan, folders, progress, stack)
        world.traffic.begin(list(folders), [group.endpoint for group in found.kept])
        yield dataclasses.replace(found, resumed=True), world


def interrupted(root: Path, endpoint: Endpoint) -> ReloadState:
    """The reload that covers a group that `endpoint` means, by its latest record.

    Raises:
        NotFound: there is none.
        Conflict: a journal that is not ours, or there are several reloads.
    """
    entries = journals.entries(root, endpoint)
    if not entries:
        raise NotFound(f"no reload of {endpoint} was interrupted", hint="'status' shows interrupted reloads")
    if len({entry.header.begun_at for entry in entries}) > 1:
        raise Conflict(f"several reloads on {endpoint} were interrupted", hint="also write the address")
    latest = max(entries, key=lambda entry: entry.header.sequence)
    return decode(latest.text)


class _Unwritten:
    """The journal of a reload that is only tried."""

    def write(self, state: ReloadState) -> None:
        """Nothing is written."""

    def last(self) -> ReloadState | None:
        """Nothing was written."""
        return None

    def remove(self) -> None:
        """There is nothing."""

    def leave(self, group: Endpoint, last: LastReload) -> None:
        """Nothing was done."""


def dry_run(endpoints: Sequence[Endpoint], plan: Plan, root: Path | None, progress: Progress) -> DryRun:
    """What a reload would do, as far as it can be known without starting anything.

    Raises:
        UsageError, NotFound, Unsupported: as reload(). What else would stop it is in the answer.
    """
    reload_plan.check(plan)
    warnings: list[str] = []
    strategy = reload_plan.choose_strategy(plan, warnings.append)
    folders: dict[Endpoint, Place] = {}
    with ExitStack() as stack:
        world = dataclasses.replace(live.world(plan, folders, progress, stack), journal=_Unwritten())
        found = survey.survey(endpoints, plan, world)
        with contextlib.suppress(NotFound):
            folder = bpffs.find(root)
            folders.update({group.endpoint: places.group_folder(folder, group.endpoint) for group in found.groups})
        tried = begun(endpoints, plan, strategy, found, world)
        try:
            if found.refusal is not None:
                raise found.refusal
            _watch(world, found)
            tried = _tried(tried, world, folders)
            refusal = None
        except ToolError as error:
            refusal = error
        return planned(tried, world, refusal, warnings)


def _tried(tried: ReloadState, world: World, folders: Mapping[Endpoint, Place]) -> ReloadState:
    """Raises what the reload would raise before it started anything, or compared anything."""
    wanted = ["CAP_BPF", "CAP_PERFMON", *(["CAP_NET_ADMIN"] if tried.strategy is Strategy.SYSCTL else [])]
    if capabilities.missing(wanted):
        raise MissingCapability("not permitted to load BPF programs", hint=capabilities.hint(*wanted))
    for group in tried.groups:
        if tried.plan.run is not None and group.way is WayName.DATAGRAMS:
            world.gap.check(group.endpoint)
        where = folders.get(group.endpoint)
        if where is not None and journals.is_running(where):
            raise Conflict(f"another run holds the lock of {group.endpoint}", hint="wait until it is done")
        if where is not None:
            places.refuse_interrupted(where, group.endpoint)
        if group.way is WayName.PROGRAM and where is not None:
            running = world.pins.running(group.endpoint)
            if running.known and running.program_id is not None and not running.ours:
                raise Conflict(
                    f"{group.endpoint} has a reuseport program that is not this tool's",
                    hint="--strategy sysctl works beside it",
                )
    from shutil import which

    if tried.plan.command and which(tried.plan.command[0]) is None:
        raise no_such_program(" ".join(tried.plan.command))
    if tried.given is not None:
        tried = compare(sides.find_new(sides.new_side(tried, world), world), world)
    return tried


def planned(tried: ReloadState, world: World, refusal: ToolError | None, warnings: Sequence[str]) -> DryRun:
    """The answer of a dry run."""
    pids = tuple(owner.pid for owner in tried.owners)
    return DryRun(
        groups=tuple(
            PlannedGroup(
                endpoint=str(group.endpoint),
                old_listeners=len(group.old),
                other_listeners=len(set(group.before) - set(group.old)),
                new_listeners=len(group.new),
                dropped=group.dropped,
            )
            for group in tried.groups
        ),
        strategy=tried.strategy,
        stop=_stop(tried),
        pids=pids if tried.plan.signals else (),
        commands=tuple(world.processes.command(pid) for pid in pids) if tried.plan.signals else (),
        code=refusal.exit_code if refusal else 0,
        refusal=refusal.message if refusal else None,
        hint=refusal.hint if refusal else None,
        warnings=tuple(dict.fromkeys((*warnings, *tried.warnings))),
    )


def _stop(tried: ReloadState) -> str:
    if tried.plan.run is not None:
        return f"the server replaces itself: {tried.plan.run}"
    return tried.plan.stop_command or tried.plan.stop_signal.name
