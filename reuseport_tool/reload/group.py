"""One group on its way through a reload."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from reuseport_tool.errors import NotFound, ToolError
from reuseport_tool.group import attach, discover, state
from reuseport_tool.group.discover import Found, Member
from reuseport_tool.group.state import State
from reuseport_tool.kernel import processes, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.iterator import Listeners
from reuseport_tool.models import Counters, Endpoint
from reuseport_tool.reload import preflight
from reuseport_tool.reload.journal import GroupRecord


@dataclass(kw_only=True)
class Group:
    """A group whose lock the caller holds.

    Attributes:
        old: the listeners to be replaced, as they were found.
        old_cookies: theirs; of a resumed reload also those that have closed since.
        attached_before: whether our program ran before the reload began.
        new: cookies of the new side's listeners, as far as they are known.
    """

    endpoint: Endpoint
    folder: Place
    old: Found
    old_cookies: tuple[int, ...]
    attached_before: bool
    old_generation: int | None = None
    new_generation: int | None = None
    counters_before: Counters | None = None
    state: State | None = None
    new: list[int] = field(default_factory=list)
    _seen: set[int] | None = None

    @classmethod
    def begin(cls, old: Found, folder: Place) -> Group:
        return cls(
            endpoint=old.endpoint, folder=folder, old=old, old_cookies=old.cookies, attached_before=State.exists(folder)
        )

    @classmethod
    def restore(cls, record: GroupRecord, folder: Place) -> Group:
        """As a reload that was killed left it."""
        old = discover.now(record.endpoint).subset(record.old_cookies)
        return cls(
            endpoint=record.endpoint,
            folder=folder,
            old=old,
            old_cookies=record.old_cookies,
            attached_before=record.attached_before,
            old_generation=record.old_generation,
            new_generation=record.new_generation,
            counters_before=record.counters_before,
        )

    def record(self) -> GroupRecord:
        return GroupRecord(
            endpoint=self.endpoint,
            old_cookies=self.old_cookies,
            attached_before=self.attached_before,
            old_generation=self.old_generation,
            new_generation=self.new_generation,
            counters_before=self.counters_before,
        )

    def close(self) -> None:
        if self.state is not None:
            self.state.close()

    def attach(self, chosen: attach.ChosenPolicy, listeners: Listeners | None) -> None:
        """Attach our program, if it is not yet: from here connections that wait already are safe."""
        self.close()
        if self.old.members:
            self.state, result, _ = attach.attach_group(self.old, chosen, self.folder, listeners=listeners)
            self.attached_before &= result != "attached"
        else:
            self.open()
        assert self.state is not None
        if self.old_generation is None:
            self.old_generation = self.state.working
        if self.counters_before is None:
            self.counters_before = self.state.counters()

    def open(self) -> None:
        """Open the pins that an earlier run made. Raises NotFound."""
        self.state = State.open(self.folder)

    @property
    def is_switched(self) -> bool:
        return self.state is not None and self.new_generation is not None and self.state.working == self.new_generation

    def find_new(self, is_new: Callable[[Member], bool]) -> int:
        """Look for listeners of the new side; how many there are. Their holders are asked when something changed."""
        present = discover.sockets_in(self.endpoint)
        entries = [entry for entry in present if entry.cookie not in self.old_cookies]
        cookies = {entry.cookie for entry in entries}
        if cookies != self._seen:
            members = discover.with_holders({self.endpoint: entries})[0].members
            self.new = [member.cookie for member in members if is_new(member)]
            # A socket without a holder is on its way from one process to another: look again.
            self._seen = cookies if all(member.holders for member in members) else None
        return len(self.new)

    def differences(self, old_fds: dict[int, int] | None) -> preflight.Differences:
        """What the new listeners would treat differently.

        Args:
            old_fds: our copies of the old listeners, cookie → fd; None takes one.

        Raises:
            ToolError: the new listeners are gone.
        """
        found = discover.now(self.endpoint)
        new = found.subset(self.new)
        if not new.members:
            raise self.new_are_gone()
        with discover.descriptors(new.members[:1]) as fds:
            after = sockets.listener_options(next(iter(fds.values())))
        old = found.subset(self.old_cookies)
        with contextlib.ExitStack() as stack:
            before_fds = old_fds if old_fds is not None else stack.enter_context(discover.descriptors(old.members[:1]))
            before = [sockets.listener_options(fd) for fd in list(before_fds.values())[:1]]
        queued = sum(member.socket.accept_queue or 0 for member in old.members)
        capacity = preflight.compare_capacity(queued, [member.socket.backlog or 0 for member in new.members])
        options = preflight.compare(before[0], after) if before else preflight.Differences((), ())
        return preflight.Differences(options.unsafe + capacity.unsafe, options.harmless + capacity.harmless)

    def new_are_gone(self) -> ToolError:
        return ToolError(f"the new listeners on {self.endpoint} are gone")

    def fill(self) -> None:
        """Register the new listeners in the new generation, whose number is known, as far as they are not yet."""
        assert self.state is not None
        assert self.new_generation is not None
        members = discover.now(self.endpoint).subset(self.new).members
        if not members:
            raise self.new_are_gone()
        if self.new_generation not in self.state.generations():
            self.state.create_generation(self.new_generation)
        registered = {cookie for _, cookie in self.state.slots(self.new_generation)}
        self._register([member for member in members if member.cookie not in registered])

    def register_late(self, is_new: Callable[[Member], bool]) -> None:
        """Register listeners that the new side opened after the switch."""
        if self.state is None or self.new_generation is None:
            return
        before = set(self.new)
        self.find_new(is_new)
        late = discover.now(self.endpoint).subset(tuple(set(self.new) - before))
        self.new = sorted(before | set(self.new))
        self._register(late.members)

    def _register(self, members: Collection[Member]) -> None:
        assert self.state is not None
        assert self.new_generation is not None
        with discover.descriptors(list(members)) as fds:
            for cookie, fd in fds.items():
                self.state.release(cookie)  # a follower may have registered it with the old ones
                self.state.add(self.new_generation, fd)

    def held_by_others(self) -> set[int]:
        """Cookies of the old listeners that a process besides ours has open."""
        entries = [entry for entry in discover.sockets_in(self.endpoint) if entry.cookie in self.old_cookies]
        held = processes.holders([entry.inode for entry in entries])
        return {entry.cookie for entry in entries if held[entry.inode]}

    def adopt(self, survivors: set[int], fds: dict[int, int]) -> None:
        """Move old listeners that the server goes on using into the new generation.

        Args:
            fds: our copies of the old listeners, cookie → fd.
        """
        self.old_cookies = tuple(cookie for cookie in self.old_cookies if cookie not in survivors)
        if self.state is None or self.new_generation is None or self.old_generation is None:
            self.new += sorted(survivors)
            return
        for slot, cookie in self.state.slots(self.old_generation):
            if cookie in survivors:
                self.state.remove(self.old_generation, slot)
                self.state.add(self.new_generation, fds[cookie])
                self.new.append(cookie)

    def switch_back(self) -> None:
        """All new connections go to the old generation."""
        if self.state is None:
            return
        self.state.end_canary()
        if self.is_switched and self.old_generation is not None:
            self.state.switch(self.old_generation)

    def forget_new_generation(self, listeners: Listeners | None) -> None:
        """Remove what this reload made, after the new side's listeners have closed."""
        if self.state is not None:
            if self.new_generation is not None:
                self.state.remove_generation(self.new_generation)
            self.state.close()
            self.state = None
        if not self.attached_before:
            self._detach(listeners)

    def _detach(self, listeners: Listeners | None) -> None:
        if State.exists(self.folder):
            with State.open(self.folder) as opened:
                ours = opened.policy().id
            if attach.attached_program(self.old, listeners) in (None, ours):
                with contextlib.suppress(NotFound), discover.descriptors(self.old.members[:1]) as fds:
                    sockets.detach_program(next(iter(fds.values())))
        state.clean(self.folder)

    def forget_old_generation(self) -> None:
        """Unpin the old generation, if its listeners have all closed."""
        opened, generation = self.state, self.old_generation
        if opened is None or not generation or generation == opened.working:
            return
        if generation in opened.generations() and not opened.slots(generation):
            opened.remove_generation(generation)
