"""Who the old side is: its listeners in every group, its processes, and what stands in the way of stopping them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from reuseport_tool.errors import Conflict, NotFound, ToolError, UsageError
from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.record import record
from reuseport_tool.reload.plan import Plan
from reuseport_tool.reload.world import World

Groups = Mapping[Endpoint, tuple[Member, ...]]
_LOOKS = 10


@record
class Surveyed:
    """One group: its old listeners, and all that are there but those of --new-pid."""

    endpoint: Endpoint
    old: tuple[Member, ...]
    before: tuple[Member, ...]
    dropped: bool


@record
class Survey:
    """What a reload begins with.

    Attributes:
        owners: the processes to tell to stop.
        side: those, all that descend from them, and all that hold an old listener.
        given: the process of --new-pid, None where it does not run.
        warnings: what the operator should know before anything starts.
        refusal: why the reload must not begin, None where it may.
    """

    groups: tuple[Surveyed, ...]
    owners: tuple[ProcessIdentity, ...]
    side: tuple[ProcessIdentity, ...]
    given: ProcessIdentity | None
    warnings: tuple[str, ...]
    refusal: ToolError | None


@record
class _Look:
    """All that is there, the listeners to be replaced, who holds them, and who is to stop."""

    tree: ProcessTree
    present: Groups
    old: Mapping[Endpoint, tuple[Member, ...]]
    holders: set[int]
    masters: list[int]


def untouchable(world: World, tree: ProcessTree) -> set[int]:
    """Never signalled: the first process, the tool, and the processes above it."""
    return {1, *tree.above(world.processes.own_pid()), world.processes.own_pid()}


def survey(endpoints: Sequence[Endpoint], plan: Plan, world: World) -> Survey:
    """Look, and change nothing.

    Raises:
        NotFound: nothing listens there, or nothing of the processes of the plan.
        UsageError: --drop names none of the groups, or all.
        MissingCapability: the holders of a listener cannot be seen.
        Conflict: who holds the listeners changes faster than one can look.
    """
    look = _steady_look(endpoints, plan, world)
    tree, present, old, holders, masters = look.tree, look.present, look.old, look.holders, look.masters
    new = tree.below({plan.new_pid}) if plan.new_pid else set()
    own = {world.processes.own_pid()}
    side = (tree.below({pid for pid in masters if pid != 1}) | holders) - tree.below(own) - new
    others, warnings = _other_groups(present, old, side - {1}, new, world)
    refusal: ToolError | None = None
    if plan.only and others:
        refusal, told = _left_out(plan, masters, others, world)
        warnings, others = [*told, *warnings], {}
    old = dict(old) | others
    forbidden = untouchable(world, tree)
    refusal = refusal or _forked_new(plan, masters, world)
    if plan.signals:
        refusal = refusal or _refusal(plan, tree, masters, forbidden, old, world)
    return Survey(
        groups=_surveyed(old, present, plan, new),
        owners=tree.identities(pid for pid in masters if pid not in forbidden),
        side=tree.identities(side),
        given=tree.identity(plan.new_pid) if plan.new_pid else None,
        warnings=(*warnings, *_shared(old), *_services(plan, masters, world)),
        refusal=refusal,
    )


def _steady_look(endpoints: Sequence[Endpoint], plan: Plan, world: World) -> _Look:
    """All processes, then all groups, then who holds the listeners to be replaced, then their masters.

    A number may pass to another process between two looks, also on purpose, and that one must not be stopped. So
    whoever is found must be the same process before the first and after the last. One that has just begun is given
    some looks to be known; it is not signalled otherwise.
    """
    for left in reversed(range(_LOOKS)):
        tree = world.processes.tree()
        present = {**world.listeners.everything(Protocol.TCP), **world.listeners.everything(Protocol.UDP)}
        new = tree.below({plan.new_pid}) if plan.new_pid else set()
        old = _old_members(_named(endpoints, present), plan, tree, new, world)
        holders = {holder.pid for members in old.values() for member in members for holder in member.holders}
        known = {process.pid for process in tree.identities(holders)}
        masters = list(plan.old_pids) or world.processes.masters(known)
        found = tree.identities({*known, *masters} - {1})
        if all(map(world.processes.runs, found)) and (known == holders or not left):
            return _Look(tree=tree, present=present, old=old, holders=holders, masters=masters)
    raise Conflict(
        f"the processes that hold the listeners on {', '.join(map(str, endpoints))} come and go",
        hint="reload again when they stay; 'status' shows who holds them",
    )


def _named(endpoints: Sequence[Endpoint], present: Groups) -> dict[Endpoint, tuple[Member, ...]]:
    for endpoint in endpoints:
        if not any(endpoint.covers(group) for group in present):
            same_port = sorted(str(group) for group in present if group.port == endpoint.port)
            hint = "'status' lists what listens here; --netns NAME looks into another network namespace"
            if same_port:
                hint = f"on that port there is: {', '.join(same_port)}"
            raise NotFound(f"nothing listens on {endpoint}", hint=hint)
    return {
        group: members for group, members in present.items() if any(endpoint.covers(group) for endpoint in endpoints)
    }


def _old_members(
    named: Groups, plan: Plan, tree: ProcessTree, new: Collection[int], world: World
) -> dict[Endpoint, tuple[Member, ...]]:
    """The listeners to be replaced: those of the old processes, or all that are not the new one's."""
    side = tree.below(plan.old_pids) if plan.old_pids else None

    def is_old(member: Member) -> bool:
        return (side is None or held_by(member, side)) and not held_by(member, new)

    old = {group: tuple(filter(is_old, members)) for group, members in named.items()}
    found = {group: members for group, members in old.items() if members}
    everyone = [member for members in named.values() for member in members]
    if not found:
        world.listeners.require_visible(everyone)
        whose = f"of process {', '.join(map(str, plan.old_pids))}" if plan.old_pids else "besides the new ones"
        hint = "'status' shows who holds each listener"
        if any({holder.pid in new for holder in member.holders} == {True, False} for member in everyone):
            hint = "the new server has inherited them: they stay open when the old one stops, so nothing has to move"
        raise NotFound(f"{', '.join(map(str, named))} has no listeners {whose}", hint=hint)
    world.listeners.require_visible([member for members in found.values() for member in members])
    return found


def held_by(member: Member, pids: Collection[int]) -> bool:
    """Whether one of these processes holds a listener."""
    return any(holder.pid in pids for holder in member.holders)


def _other_groups(
    present: Groups, old: Groups, side: Collection[int], new: Collection[int], world: World
) -> tuple[dict[Endpoint, tuple[Member, ...]], list[str]]:
    """The groups besides the named ones in which the same processes listen, and a warning for what is no group."""
    found: dict[Endpoint, tuple[Member, ...]] = {}
    warnings = []
    for group, members in present.items():
        theirs = tuple(member for member in members if held_by(member, side) and not held_by(member, new))
        if group in old or not theirs:
            continue
        if group.protocol is Protocol.UDP:
            if _is_udp_group(theirs, world):
                found[group] = theirs
        elif any(world.listeners.is_reuseport(member) for member in theirs):
            found[group] = theirs
        else:
            warnings.append(
                f"{group} is without SO_REUSEPORT: no new server can listen there until the old one has stopped, "
                "and what waits there is lost"
            )
    return found, warnings


def _shared(old: Groups) -> list[str]:
    what = "the kernel gives each datagram to every socket there: both servers get them until the old one has stopped"
    return [f"{group}: {what}" for group in old if group.is_shared]


def _forked_new(plan: Plan, masters: Collection[int], world: World) -> Conflict | None:
    """A worker of the new server was named: its master and the other workers would be taken for old ones."""
    chiefs = set(world.processes.masters([plan.new_pid])) - {plan.new_pid} if plan.new_pid else set()
    if chiefs.isdisjoint(masters):
        return None
    (chief,) = chiefs
    return Conflict(
        f"process {plan.new_pid} is a worker of {describe([chief], world)}, which would be stopped as an old one",
        hint=f"give the master: --new-pid {chief}",
    )


def _services(plan: Plan, masters: Sequence[int], world: World) -> list[str]:
    """What systemd will make of the reload, where it started one of the sides and is not the one to replace it."""
    own = world.processes.kin(world.processes.own_pid()).unit
    units = {world.processes.kin(pid).unit for pid in masters}
    warnings = []
    for name in sorted(_unit_name(unit) for unit in units - {own, None} if plan.signals):
        warnings.append(
            f"the old server is {name}: systemd does not know the new one, and may start the old one again; "
            f"--run 'systemctl restart {name}' or --unit replaces it by systemd"
        )
    if plan.command is not None and own is not None and own not in units:
        warnings.append(
            f"the new server becomes a part of {_unit_name(own)}, as the tool is, and systemd may end it with that "
            "unit; --run 'systemctl restart UNIT' or --unit starts it in a unit of its own"
        )
    return warnings


def _unit_name(unit: str | None) -> str:
    return (unit or "").rpartition("/")[2]


def _is_udp_group(members: Sequence[Member], world: World) -> bool:
    """A UDP socket without SO_REUSEPORT is a client as a rule: a resolver has hundreds of them for a moment each."""
    infos = world.datagrams.sockets()
    if not infos:
        return any(world.listeners.is_reuseport(member) for member in members)
    return any(infos[member.cookie].group for member in members if member.cookie in infos)


def _left_out(plan: Plan, masters: Sequence[int], others: Groups, world: World) -> tuple[Conflict | None, list[str]]:
    """What --only comes to when the same processes have other groups."""
    listed = ", ".join(map(str, others))
    if plan.signals:
        owners = describe(masters, world)
        hint = "leave --only out, or stop only a part of the server by --stop-command"
        return Conflict(f"stopping {owners} also closes {listed}", hint=hint), []
    return None, [f"--only: {listed} of the same processes is not handed over"]


def _refusal(
    plan: Plan,
    tree: ProcessTree,
    masters: Sequence[int],
    forbidden: Collection[int],
    old: Groups,
    world: World,
) -> ToolError | None:
    """Why the old side must not be stopped by a signal."""
    reachable = [pid for pid in masters if pid not in forbidden]
    for owner in tree.identities(reachable):
        world.processes.signal(owner, 0)
    blocked = [pid for pid in masters if pid in forbidden]
    if blocked and not (plan.force and reachable):
        return Conflict(
            f"{describe(blocked, world)} holds the old listeners, and the tool does not signal "
            "pid 1, itself or its ancestors",
            hint="say how to stop them: --stop-command, for example 'systemctl stop web.socket web.service'",
        )
    members = [member for each in old.values() for member in each]
    stay = staying(members, tree, set(masters), forbidden, world)
    return None if plan.force else refusal_of(stay)


def refusal_of(stay: Mapping[int, str]) -> Conflict | None:
    """Why a reload must not go on when these processes keep old listeners open."""
    if not stay:
        return None
    return Conflict(
        f"after the stop these processes would keep old listeners open without accepting: {', '.join(stay.values())}",
        hint="end them, let them close the listener, name them by --old-pid, or use --stop-command or --force",
    )


def staying(
    members: Iterable[Member], tree: ProcessTree, owners: Collection[int], forbidden: Collection[int], world: World
) -> dict[int, str]:
    """Who holds an old listener and will not end with its owners: pid and description."""
    ending = tree.below({pid for pid in owners if pid not in forbidden})
    executables = {world.processes.kin(pid).executable for pid in owners}
    found: dict[int, str] = {}
    for member in members:
        for pid in (holder.pid for holder in member.holders):
            if pid in ending and (pid in owners or _is_worker(pid, executables, world)):
                continue
            found[pid] = f"process {pid} ({world.processes.command(pid)})"
    return found


def _is_worker(pid: int, executables: Collection[str | None], world: World) -> bool:
    """Whether a process below an owner serves, and does not just have a descriptor that it inherited."""
    executable = world.processes.kin(pid).executable
    return executable in executables or executable is None or world.processes.waits(pid) is not False


def describe(pids: Iterable[int], world: World) -> str:
    """For a message: process 12 (nginx), process 13 (nginx)."""
    return ", ".join(f"process {pid} ({world.processes.command(pid)})" for pid in pids)


def _surveyed(old: Groups, present: Groups, plan: Plan, new: Collection[int]) -> tuple[Surveyed, ...]:
    for dropped in plan.drop:
        if not any(dropped.covers(group) for group in old):
            raise UsageError(
                f"--drop {dropped}: the old side has no such group", hint=f"it has {', '.join(map(str, old))}"
            )
    groups = tuple(
        Surveyed(
            endpoint=group,
            old=members,
            before=tuple(member for member in present[group] if not held_by(member, new)),
            dropped=any(dropped.covers(group) for dropped in plan.drop),
        )
        for group, members in sorted(old.items(), key=lambda entry: str(entry[0]))
    )
    if all(group.dropped for group in groups):
        raise UsageError("--drop names every group", hint="just stop the server")
    return groups
