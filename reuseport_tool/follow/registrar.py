"""Attaches a group, and registers its listeners, as decide says. The caller holds the group's lock."""

from __future__ import annotations

from dataclasses import dataclass, field

from reuseport_tool.errors import NotFound, ToolError
from reuseport_tool.follow.decide import Action, Look, Unregistered, act, sort
from reuseport_tool.follow.owners import Owners
from reuseport_tool.follow.reporter import Reporter
from reuseport_tool.group import attach, discover, kinship, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.discover import Member, PresentGroup
from reuseport_tool.group.kinship import Kinship
from reuseport_tool.group.state import State
from reuseport_tool.kernel import iterator
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Endpoint


@dataclass(kw_only=True)
class Registrar:
    """What a follower does to groups.

    Attributes:
        attached: the groups that were found attached, or were attached.
        obstacle: why a listener could not be taken that may be taken soon, or None.
    """

    chosen: policies.ChosenPolicy
    listeners: iterator.Listeners | None
    owners: Owners
    report: Reporter
    attached: set[Endpoint] = field(default_factory=set)
    obstacle: str | None = None

    def act(self, group: Endpoint, folder: Place, entries: list[BoundSocket], *, first: bool) -> None:
        """Attach what is not attached, register what is not registered. Raises what attaching raises."""
        match act(self._snapshot(folder, entries, first)):
            case Action.JOIN:
                with State.open(folder) as opened:
                    self._join(group, opened, entries)
                self.attached.add(group)
            case Action.REFUSE:
                self.report.failed(group, f"a reload of {group} was interrupted")
            case Action.WAIT:
                self.obstacle = f"no process holds a listener on {group}"
            case Action.ATTACH:
                self._attach(group, folder, entries, self.chosen, first)
            case Action.RENEW:
                self._attach(group, folder, entries, policies.ChosenPolicy(None, None), first)

    def _snapshot(self, folder: Place, entries: list[BoundSocket], first: bool) -> Look:
        attached, working = State.exists(folder), False
        if attached:
            with State.open(folder) as opened:
                working = opened.generations.working.has_listeners()
        return Look(
            first=first,
            listeners=len(entries),
            held=sum(bool(self.owners.of(entry.cookie)) for entry in entries),
            attached=attached,
            interrupted=places.is_interrupted(folder),
            working=working,
        )

    def _attach(
        self, group: Endpoint, folder: Place, entries: list[BoundSocket], chosen: policies.ChosenPolicy, first: bool
    ) -> None:
        members = tuple(Member(entry, self.owners.of(entry.cookie)) for entry in entries)
        try:
            opened, result, cookies = attach.attach_group(
                PresentGroup(group, members),
                chosen,
                folder,
                infos=iterator.infos_of(self.listeners, [entry.cookie for entry in entries]),
                belongs=self._belongs,
                renew=False,
            )
        except NotFound as error:  # one closed meanwhile, or is on its way from one process to another
            if first:
                raise
            self.obstacle = error.message
            return
        with opened:
            self.attached.add(group)
            if result != "unchanged":
                self.report.attached(group, opened.choice.working, result)
            slots = {cookie: slot for slot, cookie in opened.generations.working.slots()}
            for cookie in cookies:
                self.report.registered(group, opened.choice.working, slots.get(cookie), cookie)
            left = [entry.cookie for entry in unregistered(folder, entries)]
            self.report.left_alone(group, [cookie for cookie in left if self.owners.of(cookie)])

    def _join(self, group: Endpoint, opened: State, entries: list[BoundSocket]) -> None:
        """Register the working generation's new listeners."""
        known, families = opened.generations.registered(), self._families(opened)
        new = {entry.cookie: entry for entry in entries if entry.cookie not in known}
        chosen = sort([self._seen(cookie, families) for cookie in new])
        for cookie in chosen.wait:
            self.obstacle = f"no process holds the listener with cookie {cookie}"
        for cookie in chosen.take:
            self._register(group, opened, Member(new[cookie], self.owners.of(cookie)))
        self.report.left_alone(group, chosen.leave)

    def _seen(self, cookie: int, families: tuple[Kinship, Kinship]) -> Unregistered:
        pids = self.owners.pids([cookie])
        return Unregistered(cookie=cookie, held=bool(pids), is_kin=kinship.belongs(pids, *families))

    def _register(self, group: Endpoint, opened: State, member: Member) -> None:
        try:
            with discover.descriptors([member]) as fds:
                slot = opened.generations.working.add(fds[member.cookie])
        except NotFound as error:
            self.obstacle = error.message
        except ToolError as error:
            self.report.failed(group, error.message, member.cookie)
        else:
            self.report.registered(group, opened.choice.working, slot, member.cookie)

    def _belongs(self, opened: State, cookie: int) -> bool:
        if not opened.generations.working.has_listeners():
            return True
        return kinship.belongs(self.owners.pids([cookie]), *self._families(opened))

    def _families(self, opened: State) -> tuple[Kinship, Kinship]:
        """Of the working generation, and of all others that still have listeners."""
        by_generation = opened.generations.slots()
        working = [cookie for _, cookie in by_generation.pop(opened.choice.working, [])]
        others = [cookie for slots in by_generation.values() for _, cookie in slots]
        return Kinship.of(self.owners.pids(working)), Kinship.of(self.owners.pids(others))


def unregistered(folder: Place, entries: list[BoundSocket]) -> list[BoundSocket]:
    """Those that are in no generation. None where nothing is attached."""
    try:
        with State.open(folder) as opened:
            known = opened.generations.registered()
    except NotFound:  # detached meanwhile
        return []
    return [entry for entry in entries if entry.cookie not in known]
