"""Which processes and listeners belong to the new side, and which of the old ones are left."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping

from reuseport_tool.group.discover import Member
from reuseport_tool.kernel.commands import Kin
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import Endpoint, Queues
from reuseport_tool.reload.saving import since_begin_s
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.survey import held_by
from reuseport_tool.reload.world import World


def new_processes(state: ReloadState, world: World, tree: ProcessTree) -> set[int]:
    """The processes that are tied to the new side.

    The tool is a child subreaper: a daemon that forked twice is its descendant. A run that goes on after another one
    was killed knows the processes that were written down, what is below them, and their mark.
    """
    roots = {process.pid for process in tree.running((*state.new_side, *_roots(state)))}
    if state.given is not None:
        return tree.below(roots)
    if state.resumed:
        roots |= world.processes.marked(state.mark)
    own = world.processes.own_pid()
    return tree.below(roots) | (tree.below({own}) - {own} - world.processes.bystanders(tree))


def _roots(state: ReloadState) -> list[ProcessIdentity]:
    return [process for process in (state.started, state.given) if process is not None]


def listening(
    state: ReloadState, world: World, groups: Collection[Endpoint] | None = None
) -> dict[Endpoint, tuple[BoundSocket, ...]]:
    """The sockets of the groups, or of some of them, as they are now."""
    wanted = [group.endpoint for group in state.groups] if groups is None else list(groups)
    present = world.listeners.on(wanted)
    return {group: present.get(group, ()) for group in wanted}


def _groups_of(state: ReloadState, cookies: Collection[int]) -> list[Endpoint]:
    """The groups that have some of these listeners: to look at them alone keeps the cost linear."""
    asked = set(cookies)
    found = [group for group in state.groups if not asked.isdisjoint((*group.old, *group.before, *group.new))]
    known = {cookie for group in found for cookie in (*group.old, *group.before, *group.new)}
    return [group.endpoint for group in (found if asked <= known else state.groups)]


def queues(state: ReloadState, world: World) -> dict[int, int]:
    """The accept queue of each listener of the groups, by cookie; 0 for a UDP socket."""
    return _noted(itertools.chain.from_iterable(listening(state, world).values()), state, world)


def _noted(entries: Iterable[BoundSocket], state: ReloadState, world: World) -> dict[int, int]:
    """The accept queue of each, by cookie, which the log gets, too."""
    found = {entry.cookie: entry.accept_queue or 0 for entry in entries}
    world.queues.note(since_begin_s(state, world), found, state.old_cookies)
    return found


def unread(state: ReloadState, world: World, cookies: Collection[int]) -> dict[int, int]:
    """The bytes that each of these UDP sockets has not read yet, by cookie."""
    if not cookies:
        return {}
    entries = (entry for each in listening(state, world).values() for entry in each if entry.cookie in cookies)
    return {entry.cookie: entry.receive_queue for entry in entries}


def waiting(state: ReloadState, world: World, cookies: Collection[int]) -> Queues:
    """What these listeners hold now."""
    present = queues(state, world)
    snapshot = world.listeners.kernel(cookies)
    half_open = None
    if snapshot is not None:
        half_open = sum(snapshot.listeners[cookie].half_open for cookie in cookies if cookie in snapshot.listeners)
    return Queues(accept_queue=sum(present.get(cookie, 0) for cookie in cookies), half_open=half_open)


def still_listening(state: ReloadState, world: World) -> frozenset[int]:
    """The old listeners that are open."""
    return state.old_cookies & queues(state, world).keys()


def half_open_behind(state: ReloadState, world: World) -> int | None:
    """Request sockets that still point at a closed old listener; None where the kernel does not tell."""
    snapshot = world.listeners.kernel()
    if snapshot is None:
        return None
    gone = state.old_cookies - queues(state, world).keys()
    return sum(snapshot.requests.get(cookie, 0) for cookie in gone)


def members_of(state: ReloadState, world: World, cookies: Collection[int]) -> tuple[Member, ...]:
    """Those of these listeners that are open, with their holders."""
    if not cookies:
        return ()
    present = listening(state, world, _groups_of(state, cookies))
    entries = [entry for each in present.values() for entry in each if entry.cookie in cookies]
    return world.listeners.with_holders(entries, None)


def accepting(state: ReloadState, world: World, cookies: Collection[int]) -> frozenset[int]:
    """Those of these listeners of which a process sleeps in a call that waits for connections."""
    members = members_of(state, world, cookies)
    waits = {pid: world.processes.waits(pid) for pid in {pid for member in members for pid in _pids(member)}}
    return frozenset(member.cookie for member in members if any(waits[pid] for pid in _pids(member)))


def held_by_others(state: ReloadState, world: World) -> frozenset[int]:
    """The old listeners that a process besides ours has open."""
    return frozenset(member.cookie for member in members_of(state, world, state.old_cookies) if member.holders)


class Newcomers:
    """Finds the new side's listeners, again and again. It remembers those whose holders it knows.

    `wrong` maps groups on the same ports that are not the reload's to the processes of the new side that listen there.

    Args:
        known: listeners that are not looked for.
    """

    def __init__(self, state: ReloadState, world: World, known: Collection[int] = ()) -> None:
        self._state = state
        self._world = world
        self._before = {cookie for group in state.groups for cookie in (*group.before, *group.old)}.union(known)
        self._known: dict[int, Member] = {}
        self._old_pids = {process.pid for process in state.old_side}
        self._old_kin: set[Kin] | None = None
        self.wrong: dict[Endpoint, set[int]] = {}
        self.processes: set[int] = set()

    def look(self) -> dict[Endpoint, tuple[int, ...]]:
        """The new side's listeners in each group that it is to take over: their cookies."""
        groups = {group.endpoint for group in self._state.kept}
        present = self._world.listeners.on_ports(groups)
        self._note(present)
        members = self._holders([entry for entries in present.values() for entry in entries])
        mine = self._mine(members)
        self.wrong = {
            group: {holder.pid for entry in entries if entry.cookie in mine for holder in members[entry.cookie].holders}
            for group, entries in present.items()
            if group not in groups and any(entry.cookie in mine for entry in entries)
        }
        return {
            group: tuple(entry.cookie for entry in present.get(group, ()) if entry.cookie in mine) for group in groups
        }

    def _note(self, present: Mapping[Endpoint, tuple[BoundSocket, ...]]) -> None:
        """Log the accept queues, where these are all groups."""
        groups = [group.endpoint for group in self._state.groups]
        if len(self._state.kept) == len(groups):
            _noted((entry for group in groups for entry in present.get(group, ())), self._state, self._world)

    def _holders(self, entries: Collection[BoundSocket]) -> dict[int, Member]:
        """All that were not there before, with their holders, which are asked once."""
        unknown = [entry for entry in entries if entry.cookie not in self._known and entry.cookie not in self._before]
        if unknown or self._state.plan.run is not None:
            self.processes = new_processes(self._state, self._world, self._world.processes.tree())
        if unknown:
            among = None if self._state.plan.run is not None else self.processes
            found = self._world.listeners.with_holders(unknown, among)
            # One without a holder is on its way from a process to another, or a stranger's: look again.
            self._known.update({member.cookie: member for member in found if member.holders})
        return {entry.cookie: self._known[entry.cookie] for entry in entries if entry.cookie in self._known}

    def _mine(self, members: Mapping[int, Member]) -> set[int]:
        tied = {cookie for cookie, member in members.items() if held_by(member, self.processes)}
        if self._state.plan.run is None:
            return tied
        fresh = {cookie for cookie, member in members.items() if not any(map(self._is_respawn, _pids(member)))}
        if len(tied | fresh) < len(members) and not held_by_others(self._state, self._world):
            return set(members)  # the old side has let go of all it had: what is there now replaces it
        return tied | fresh

    def _is_respawn(self, pid: int) -> bool:
        """Whether --run's command need not be the reason that a process listens: an old one, or one like an old one."""
        if self._old_kin is None:
            self._old_kin = {self._world.processes.kin(old) for old in self._old_pids}
        return pid in self._old_pids or self._world.processes.kin(pid) in self._old_kin


def _pids(member: Member) -> list[int]:
    return [holder.pid for holder in member.holders]


def find_new(state: ReloadState, world: World, newcomers: Newcomers | None = None) -> ReloadState:
    """The state with the new side's listeners as they are now; those that were known and are open stay known.

    `newcomers` has looked for them before.
    """
    found = (newcomers or Newcomers(state, world, state.new_cookies)).look()
    present = queues(state, world)
    groups = []
    for group in state.kept:
        kept = [cookie for cookie in group.new if cookie in present]
        groups.append(dataclasses.replace(group, new=tuple(dict.fromkeys((*kept, *found[group.endpoint])))))
    return state.with_groups(groups)


def new_side(state: ReloadState, world: World, tree: ProcessTree | None = None) -> ReloadState:
    """The state with all processes that are tied to the new side, now or when the tree was read."""
    tree = tree or world.processes.tree()
    seen = tree.identities(new_processes(state, world, tree))
    return dataclasses.replace(state, new_side=tuple(dict.fromkeys((*tree.running(state.new_side), *seen))))


def serving(state: ReloadState, world: World, group: GroupState) -> bool:
    """Whether one of the new listeners of a group is open."""
    return bool(set(group.new) & {entry.cookie for entry in listening(state, world, [group.endpoint])[group.endpoint]})


def owners(state: ReloadState, world: World, cookies: Collection[int]) -> tuple[int, ...]:
    """The topmost processes that hold these listeners now."""
    held = {pid for member in members_of(state, world, cookies) for pid in _pids(member)}
    return tuple(sorted(world.processes.tree().tops(held)))
