"""Keep the working generation of a group in step with listeners that come: attach --follow.

A BPF event wakes the follower when a socket begins to listen. It looks at the group, decides which of the listeners
that nobody registered belong to the working generation (group/kinship.py), and registers them. It holds the
group's lock while it does, and while somebody else holds that (a reload) it decides nothing. At the start, and when
events found the ring full, the look is the same: it never relies on having seen every event.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError
from reuseport_tool.follow.decide import AGAIN_S, Announced
from reuseport_tool.follow.owners import Owners
from reuseport_tool.follow.registrar import Registrar, unregistered
from reuseport_tool.follow.reporter import Reporter, Tell
from reuseport_tool.follow.resets import ShownResets
from reuseport_tool.follow.wakeups import Wakeups
from reuseport_tool.group import discover, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, folders, iterator, notify
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.listen_events import ListenEvent, ListenEvents
from reuseport_tool.models import Endpoint, FollowEvent, Happening, Policy


def follow(endpoint: Endpoint, policy: Policy | None, source: Path | None, root: Path | None, tell: Tell) -> None:
    """Attach to the groups that the endpoint means, now or when they come, and register listeners until SIGTERM.

    Program, pins and registrations stay when it ends, however it ends.

    Args:
        policy, source: as for attach.attach().
        tell: called for everything that happens.

    Raises:
        Conflict, ToolError, ProgramRejected, MissingCapability, Unsupported: the first look failed.
    """
    policies.check_source(source)
    folder = bpffs.find_or_mount(root)
    with Wakeups() as wakeups, ListenEvents(endpoint.protocol, [endpoint.port]) as events, ExitStack() as stack:
        listeners = stack.enter_context(iterator.listeners_of(endpoint.protocol))
        chosen = stack.enter_context(policies.ChosenPolicy(policy, source))
        chosen.prepare()
        resets = stack.enter_context(ShownResets(endpoint))
        follower = _Follower(endpoint, folder, chosen, listeners, tell, wakeups, resets)
        follower.start()
        follower.prepare()
        tell(FollowEvent(event=Happening.FOLLOWING, endpoint=str(endpoint)))
        notify.notify("READY=1", follower.status())
        _serve(follower, events, wakeups)
        notify.notify("STOPPING=1")
        tell(FollowEvent(event=Happening.STOPPED, endpoint=str(endpoint)))


def _serve(follower: _Follower, events: ListenEvents, wakeups: Wakeups) -> None:
    watchdog_s = notify.watchdog_s()
    poll = select.poll()
    poll.register(events, select.POLLIN)
    poll.register(wakeups, select.POLLIN)
    while True:
        waits = [wait for wait in (watchdog_s, follower.again_s()) if wait is not None]
        if not follower.unsettled and not poll.poll(0):
            follower.prepare()
        happened = poll.poll(min(waits) * 1000 if waits else None)
        woken, (new, lost) = wakeups.clear(), events.drain()
        if wakeups.stop:
            break
        if new or lost or woken or (not happened and follower.unsettled):
            follower.look(new, lost)
        if watchdog_s is not None:
            notify.notify("WATCHDOG=1")


class _Follower:
    """Looks at groups, and does what decide says."""

    def __init__(
        self,
        endpoint: Endpoint,
        root: Path,
        chosen: policies.ChosenPolicy,
        listeners: iterator.Listeners | None,
        tell: Tell,
        wakeups: Wakeups,
        resets: ShownResets,
    ) -> None:
        self._resets = resets
        self._endpoint = endpoint
        self._root = root
        self._chosen = chosen
        self._wakeups = wakeups
        self._owners = Owners()
        self._hints: dict[int, int] = {}
        self._report = Reporter(tell, self._owners, self._hints)
        self._registrar = Registrar(chosen=chosen, listeners=listeners, owners=self._owners, report=self._report)
        self._announced = Announced()
        self._locked: set[Endpoint] = set()
        self._status = ""

    def start(self) -> None:
        """The first look, whose errors end the follower, unless a listener that just closes is the reason."""
        for wait_s in AGAIN_S:
            try:
                return self._first_look()
            except (NotFound, MissingCapability):
                time.sleep(wait_s)
        return self._first_look()

    def _first_look(self) -> None:
        present = discover.sockets_of(self._endpoint)
        self._announced.start(_cookies(present))
        for group in present:
            self._look_at(group, present[group], first=True)

    def prepare(self) -> None:
        """Have a program ready: compiler and verifier take longer than a group's first listener may wait."""
        with contextlib.suppress(ToolError):  # it is said when a group needs it
            self._chosen.prepare()

    def look(self, events: list[ListenEvent], lost: bool) -> None:
        """Register what has come. `events` are those since the last call, of which others may be `lost`."""
        if events or lost:
            self._announced.hurry()
        if lost:
            self._report.tell(FollowEvent(event=Happening.EVENTS_LOST, endpoint=str(self._endpoint)))
        self._hints |= {event.pid: event.time_ns for event in events if event.pid is not None}
        present = discover.sockets_of(self._endpoint)
        self._announced.account(len(events), _cookies(present), time.monotonic())
        self._owners.keep(self._announced.present)
        self._report.forget(self._announced.present)
        self._registrar.obstacle = None
        for group, entries in present.items():
            try:
                self._look_at(group, entries)
            except ToolError as error:
                self._report.failed(group, error.message)
        self._tell_manager()

    @property
    def unsettled(self) -> bool:
        """Whether a listener that was announced is not found yet, or could not be taken."""
        return self._announced.missing or self._registrar.obstacle is not None

    def again_s(self) -> float | None:
        """After which time to look again although nothing happened, None for never."""
        wait_s = self._announced.next_s() if self.unsettled else None
        if wait_s is None:
            if self._registrar.obstacle is not None:
                self._report.failed(self._endpoint, self._registrar.obstacle)
            self._announced.give_up()
            self._registrar.obstacle = None
            self._hints.clear()
        return wait_s

    def status(self) -> str:
        groups = ", ".join(str(group) for group in sorted(self._registrar.attached, key=str)) or "nothing listens yet"
        return f"STATUS=following {self._endpoint}: {groups}; {len(self._announced.present)} listeners"

    def _tell_manager(self) -> None:
        if self.status() != self._status:
            self._status = self.status()
            notify.notify(self._status)

    def _look_at(self, group: Endpoint, entries: list[BoundSocket], first: bool = False) -> None:
        folder = places.group_folder(self._root, group)
        if not State.exists(folder):
            if group in self._registrar.attached:
                self._report.detached(group)
                return
        elif not first and not unregistered(folder, entries):
            self._registrar.attached.add(group)
            self._resets.show(group, folder)
            return
        self._report.seen_attached(group)
        with ExitStack() as stack:
            try:
                stack.enter_context(places.locked(self._root, group, at_once=True))
            except Conflict as error:
                self._await_lock(group, folder, error)
                return
            entries = discover.sockets_in(group)
            self._owners.learn(entries, self._hints)
            self._registrar.act(group, folder, entries, first=first)
        if State.exists(folder):
            self._resets.show(group, folder)

    def _await_lock(self, group: Endpoint, folder: Place, conflict: Conflict) -> None:
        """Look again when the lock is free, and serve other groups meanwhile: a reload may take minutes."""
        if group in self._locked:
            return
        self._locked.add(group)
        self._report.tell(FollowEvent(event=Happening.LOCKED, endpoint=str(group), detail=conflict.message))

        def wait() -> None:
            folders.await_lock(folder)
            self._locked.discard(group)
            self._wakeups.wake()

        threading.Thread(target=wait, daemon=True).start()


def _cookies(present: Mapping[Endpoint, Sequence[BoundSocket]]) -> set[int]:
    return {entry.cookie for entries in present.values() for entry in entries}
