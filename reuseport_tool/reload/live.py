"""The world as it is: the kernel, the processes and the pins behind the protocols of world.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.group import journals, last_reload, steering
from reuseport_tool.group import policy as policies
from reuseport_tool.group.journals import Header
from reuseport_tool.group.listeners import Listeners as GroupListeners
from reuseport_tool.group.pins import Pins
from reuseport_tool.kernel import mib, resets, rlimit, sysctl
from reuseport_tool.kernel.commands import Processes, adopting
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.interrupts import Clock
from reuseport_tool.kernel.iterator import TcpListeners, UdpInfo
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.kernel.resets import ResetCounter
from reuseport_tool.models import Endpoint, LastReload, Protocol, Resets, SideResets, Step
from reuseport_tool.reload.datagrams import Datagrams
from reuseport_tool.reload.gap import Gap
from reuseport_tool.reload.old_connections import OldConnections
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.state import ReloadState, encode
from reuseport_tool.reload.world import World

if TYPE_CHECKING:
    from reuseport_tool.group.urls import Url


class Journal:
    """The journal in the folders of the groups."""

    def __init__(self, folders: Mapping[Endpoint, Place]) -> None:
        self._folders = folders
        self._last: ReloadState | None = None

    def write(self, state: ReloadState) -> None:
        """Replace what is there."""
        self._last = state
        header = Header(
            sequence=state.sequence,
            pid=state.pid,
            begun_at=state.begun_at,
            step=state.step,
            share_until=state.share_until,
        )
        try:
            journals.write(self._folders.values(), header, encode(state))
        except FileNotFoundError as error:
            raise ToolError(
                "a folder with the state of the group is gone",
                hint=f"is the bpffs still mounted? It holds {', '.join(map(str, self._folders.values()))}",
            ) from error

    def last(self) -> ReloadState | None:
        """The state that was last given to write(), whether that failed or not."""
        return self._last

    def remove(self) -> None:
        """Remove it everywhere."""
        for folder in self._folders.values():
            journals.forget(folder)

    def leave(self, group: Endpoint, last: LastReload) -> None:
        """In the group's folder."""
        last_reload.write(self._folders[group], last)


class Listeners(GroupListeners):
    """The same, and events that end the pauses of the clock."""

    def __init__(
        self, iterator: TcpListeners | None, udp_sockets: Callable[[], Mapping[int, UdpInfo]], clock: Clock
    ) -> None:
        super().__init__(iterator, udp_sockets)
        self._clock = clock

    @contextlib.contextmanager
    def watched(self, groups: Collection[Endpoint]) -> Iterator[bool]:
        """Inside, a listener that comes on these ports ends a pause of the clock. False where none tells of it."""
        if any(group.protocol is Protocol.UDP for group in groups):
            yield False
            return
        from reuseport_tool.kernel.listen_events import ListenEvents

        ports = {group.port for group in groups}
        told = False
        with ExitStack() as stack:
            with contextlib.suppress(ToolError, OSError):  # then the pauses are short
                events = stack.enter_context(ListenEvents(Protocol.TCP, ports))
                self._clock.wake_on(events.fileno(), events.drain)
                stack.callback(self._clock.forget, events.fileno())
                told = True
            yield told


class Traffic:
    """Connections of the tool's own, and the kernel's counters."""

    def __init__(self, plan: Plan, pins: Pins, clock: Clock, stack: ExitStack) -> None:
        self._url: Url | None = None
        self._counter: ResetCounter | None = None
        self._plan = plan
        self._pins = pins
        self._clock = clock
        self._stack = stack

    def begin(self, groups: Sequence[Endpoint], kept: Sequence[Endpoint]) -> None:
        """Count the resets of the groups from now on, and find the group that --health-url leads to.

        Raises UsageError where it leads to none of those that are kept.
        """
        ports = {group.port for group in groups if group.protocol is Protocol.TCP}
        counter = self._stack.enter_context(resets.counting(ports))
        self._counter = None if isinstance(counter, str) else counter
        if self._plan.health_url:
            from reuseport_tool.group import urls

            self._url = urls.url(self._plan.health_url, [group for group in kept if group.protocol is Protocol.TCP])

    def probe(self, group: Endpoint, steered: bool) -> None:
        """Leave a connection to be accepted, where one can be made."""
        steering.probe(group, self._pins.state(group) if steered else None)

    def ask(self, timeout_s: float, steered: bool) -> None:
        """Ask --health-url until it answers well, or the time is over."""
        assert self._url is not None
        canary = self._pins.state(self._url.group) if steered else None
        from reuseport_tool.group import urls

        urls.ask_until(self._url, self._clock.wait, timeout_s, canary)

    def mib(self) -> TcpCounters:
        """The counters of the namespace."""
        return mib.read()

    def resets(self) -> Resets | None:
        """Those on the ports of the groups since this run began; None where they cannot be seen."""
        return self._counter.total() if self._counter is not None else None

    def resets_of(self, side: Collection[ProcessIdentity]) -> SideResets | None:
        """Those that these processes brought about; None where they cannot be seen."""
        return self._counter.of({process.pid for process in side}) if self._counter is not None else None

    def migrate_req(self) -> str:
        """net.ipv4.tcp_migrate_req."""
        return sysctl.read(sysctl.TCP_MIGRATE_REQ)

    def set_migrate_req(self, value: str) -> None:
        """Raises MissingCapability, Unsupported."""
        sysctl.write(sysctl.TCP_MIGRATE_REQ, value)

    def old_connections(self, groups: Sequence[Endpoint], side: Collection[ProcessIdentity]) -> OldConnections:
        """What the old side has accepted and still holds."""
        return self._stack.enter_context(OldConnections(groups, side))


class Silent:
    """Tells through Progress; whatever that raises does not matter to a reload."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, step: str) -> None:
        """A step begins."""
        _quietly(self._progress.begin, step)

    def end(self, step: Step) -> None:
        """A step ended."""
        _quietly(self._progress.end, step)

    def note(self, message: str) -> None:
        """Something to know."""
        _quietly(self._progress.note, message)

    def warn(self, message: str) -> None:
        """Something to worry about."""
        _quietly(self._progress.warn, message)


def _quietly(tell: Callable[..., None], what: object) -> None:
    with contextlib.suppress(Exception):
        tell(what)


def world(plan: Plan, folders: Mapping[Endpoint, Place], progress: Progress, stack: ExitStack) -> World:
    """The world of one run. `stack` closes what it opens; `folders`, by group, may be filled later."""
    limits = stack.enter_context(rlimit.as_high_as_may_be())
    stack.enter_context(adopting())
    clock = stack.enter_context(Clock())
    listeners = None
    with contextlib.suppress(Unsupported):
        listeners = stack.enter_context(TcpListeners())
    chosen = stack.enter_context(policies.ChosenPolicy(plan.policy, None))
    flows = None if plan.flows is None else policies.FlowChoice(mode=plan.flows)
    chosen_udp = stack.enter_context(policies.ChosenPolicy(plan.policy, None, flows))
    pins = stack.enter_context(Pins(folders, chosen, listeners, chosen_udp))
    datagrams = stack.enter_context(Datagrams(pins, clock.wait))
    seen = stack.enter_context(Listeners(listeners, datagrams.sockets, clock))
    return World(
        clock=clock,
        listeners=seen,
        pins=pins,
        processes=Processes(clock.wait, limits),
        traffic=Traffic(plan, pins, clock, stack),
        datagrams=datagrams,
        gap=stack.enter_context(Gap(seen.copy, seen.adopt)),
        journal=Journal(folders),
        tell=Silent(progress),
    )
