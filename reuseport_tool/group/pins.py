"""The program and the generations of several groups, by the verbs of a reload. The caller holds the groups' locks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Closed, NotFound
from reuseport_tool.group import attach, choice, discover, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.detach import take_off
from reuseport_tool.group.discover import Member, PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.iterator import Listeners, MemberInfo, TcpListeners, infos_of, listeners_of
from reuseport_tool.models import Counters, Endpoint, Protocol
from reuseport_tool.record import record


@record
class AttachedProgram:
    """The program of a group when a reload attached it: the working generation, and what was counted until then."""

    working: int
    counters: Counters


@record
class Running:
    """The program that runs for a group: ours, or which (its id, 0 for a classic filter, None for none).

    `known` is False where the kernel does not tell.
    """

    ours: bool
    program_id: int | None
    known: bool = True


_SAME_LOOK_S = 0.05


class OpenPins(Closing):
    """The open pins of several groups, and the generations in them. A context manager; closing it leaves the pins."""

    def __init__(self, folders: Mapping[Endpoint, Place]) -> None:
        self._folders = folders
        self._stack = ExitStack()
        self._open: dict[Endpoint, State] = {}

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            self._open.popitem()[1].close()
        self._stack.close()

    def state(self, group: Endpoint) -> State | None:
        """The pins of one group, None where there are none."""
        if group not in self._open and group in self._folders and State.exists(self._folders[group]):
            self._open[group] = State.open(self._folders[group])
        return self._open.get(group)

    def _must(self, group: Endpoint) -> State:
        found = self.state(group)
        if found is None:
            raise NotFound(f"no program of this tool is attached to {group}", hint=f"attach one: attach {group}")
        return found

    def _forget(self, group: Endpoint) -> None:
        opened = self._open.pop(group, None)
        if opened is not None:
            opened.close()

    def working(self, group: Endpoint) -> int:
        """The number of the working generation."""
        return self._must(group).choice.working

    def generations(self, group: Endpoint) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self._must(group).generations.numbers())

    def cookies(self, group: Endpoint, generation: int) -> frozenset[int]:
        """The open listeners of a generation; none where there is no such generation."""
        opened = self._must(group)
        if generation not in opened.generations.numbers():
            return frozenset()
        return frozenset(cookie for _, cookie in opened.generations[generation].slots())

    def make(self, group: Endpoint, generation: int) -> None:
        """Make an empty generation, large enough for all sockets of the group."""
        self._must(group).generations.create(generation, len(discover.sockets_in(group)))

    def take_out(self, group: Endpoint, cookies: Collection[int]) -> None:
        """Take listeners out of all generations."""
        for cookie in cookies:
            self._must(group).generations.release(cookie)

    def remove(self, group: Endpoint, generation: int) -> None:
        """Remove a generation."""
        self._must(group).generations.remove(generation)

    def switch(self, group: Endpoint, generation: int) -> float:
        """Make a generation the working one, end a canary. Returns the microseconds of the commit."""
        return self._must(group).choice.switch(generation)

    def share(self, group: Endpoint, generation: int, percent: float) -> None:
        """Give a generation beside the working one this share of the new connections."""
        self._must(group).choice.share(generation, round(percent / 100 * choice.SHARES))

    def canary(self, group: Endpoint) -> tuple[int, float] | None:
        """Number and percent of the generation beside the working one."""
        found = self._must(group).choice.canary
        return (found[0], found[1] / choice.SHARES * 100) if found else None


class Pins(OpenPins):
    """The same with the programs of the groups."""

    def __init__(
        self,
        folders: Mapping[Endpoint, Place],
        chosen: policies.ChosenPolicy,
        listeners: TcpListeners | None,
        chosen_udp: policies.ChosenPolicy,
    ) -> None:
        super().__init__(folders)
        self._chosen = {Protocol.TCP: chosen, Protocol.UDP: chosen_udp}
        self._listeners: dict[Protocol, Listeners | None] = {Protocol.TCP: listeners}
        self._looks: dict[Protocol, tuple[float, Mapping[int, MemberInfo]]] = {}

    def _iterator(self, group: Endpoint) -> Listeners | None:
        """That of the group's protocol, loaded when it is needed. Raises MissingCapability."""
        if group.protocol not in self._listeners:
            self._listeners[group.protocol] = self._stack.enter_context(listeners_of(group.protocol))
        return self._listeners[group.protocol]

    def attach(self, group: Endpoint, members: Sequence[Member]) -> AttachedProgram:
        """Attach our program and register the members, as far as that is not done and they are open.

        Raises as attach_group(); Closed when every member has closed and nothing is attached.
        """
        self._looks.clear()
        if members:
            self._forget(group)
            found = PresentGroup(group, tuple(members))
            infos = self._infos(group, found.cookies)
            try:
                self._open[group], _, _ = attach.attach_group(
                    found, self._chosen[group.protocol], self._folders[group], infos=infos
                )
            except Closed:
                if self.state(group) is None:
                    raise
        opened = self._must(group)
        return AttachedProgram(working=opened.choice.working, counters=opened.counters())

    def running(self, group: Endpoint) -> Running:
        """Which program runs for it now."""
        cookies = [entry.cookie for entry in discover.sockets_in(group)]
        opened = self.state(group)
        attached = attach.program_of(cookies, self._same_look(group, cookies))
        known = self._iterator(group) is not None and bool(cookies)
        return Running(ours=opened is not None and attached == opened.policy().id, program_id=attached, known=known)

    def _same_look(self, group: Endpoint, cookies: Collection[int]) -> Mapping[int, MemberInfo]:
        """What the iterator told a moment ago of several groups: they are asked for one after another."""
        taken_s, infos = self._looks.get(group.protocol, (-math.inf, {}))
        if time.monotonic() - taken_s > _SAME_LOOK_S or not all(cookie in infos for cookie in cookies):
            infos = self._infos(group, cookies)
            self._looks[group.protocol] = time.monotonic(), infos
        return infos

    def attach_again(self, group: Endpoint) -> None:
        """Put the pinned program in the place of another one, in every part of a group that has split."""
        self._looks.clear()
        with discover.descriptors(discover.present(group).members) as fds:
            for fd in attach.one_of_each(fds, self._infos(group, fds)):
                sockets.attach_program(fd, self._must(group).program)

    def _infos(self, group: Endpoint, cookies: Collection[int]) -> Mapping[int, MemberInfo]:
        return infos_of(self._iterator(group), cookies)

    def put(self, group: Endpoint, generation: int, members: Sequence[Member]) -> None:
        """Register listeners that are open, one descriptor at a time; a follower may have registered them elsewhere."""
        opened = self._must(group)
        infos = self._infos(group, [member.cookie for member in members]) if len(members) > 1 else {}
        for member in attach.in_order(members, infos):
            with contextlib.suppress(Closed), discover.descriptors([member]) as fds:
                opened.generations.release(member.cookie)
                opened.generations[generation].add(fds[member.cookie])

    def detach(self, group: Endpoint) -> None:
        """Give the group back to the kernel, unless the program is another one by now, and remove the pins."""
        running = self.running(group)
        if running.ours or not running.known:
            take_off(discover.now(group))
        self._forget(group)
        places.clean(self._folders[group])

    def counters(self, group: Endpoint) -> Counters | None:
        """None where nothing of ours is pinned."""
        opened = self.state(group)
        return opened.counters() if opened else None
