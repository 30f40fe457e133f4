"""Keep the working generation of a group in step with listeners that come: attach --follow.

A BPF event wakes the follower when a socket begins to listen. It looks at the group, decides which of the listeners
that nobody registered belong to the working generation (group/kinship.py), and registers them. It holds the
group's lock while it does, and while somebody else holds that (a reload) it decides nothing. At the start, and when
events found the ring full, the look is the same: it never relies on having seen every event.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError
from reuseport_tool.group import attach, discover, kinship, state
from reuseport_tool.group.discover import Found, Member
from reuseport_tool.group.kinship import Family
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, folders, iterator, notify, processes
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.listen_events import ListenEvent, ListenEvents
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.models import Endpoint, FollowEvent, Happening, Policy

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The kernel tells of a listener a moment before it can be found, and a socket may be on its way between processes.
_AGAIN_S = (0.001, 0.004, 0.016, 0.064, 0.25)
_CREDIT_S = 1.0

Tell = Callable[[FollowEvent], None]


def follow(endpoint: Endpoint, policy: Policy | None, source: Path | None, root: Path | None, tell: Tell) -> None:
    """Attach to the groups that the endpoint means, now or when they come, and register listeners until SIGTERM.

    Program, pins and registrations stay when it ends, however it ends.

    Args:
        policy, source: as for attach.attach().
        tell: called for everything that happens.

    Raises:
        Conflict, ToolError, ProgramRejected, MissingCapability, Unsupported: the first look failed.
    """
    attach.check_source(source)
    folder = bpffs.find_or_mount(root)
    with _Wakeups() as wakeups, ListenEvents(endpoint.protocol, [endpoint.port]) as events, ExitStack() as stack:
        listeners = stack.enter_context(iterator.listeners_of(endpoint.protocol))
        chosen = stack.enter_context(attach.ChosenPolicy(policy, source))
        chosen.prepare()
        follower = _Follower(endpoint, folder, chosen, listeners, tell, wakeups)
        follower.start()
        follower.prepare()
        tell(FollowEvent(event=Happening.FOLLOWING, endpoint=str(endpoint)))
        notify.notify("READY=1", follower.status())
        _serve(follower, events, wakeups)
        notify.notify("STOPPING=1")
        tell(FollowEvent(event=Happening.STOPPED, endpoint=str(endpoint)))


def _serve(follower: _Follower, events: ListenEvents, wakeups: _Wakeups) -> None:
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


class _Wakeups:
    """Ends a poll() on a signal or on a byte from another thread. A context manager for the main thread.

    `stop` is true after SIGTERM, SIGINT or SIGHUP.
    """

    def __init__(self) -> None:
        self.stop = False
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def __enter__(self) -> _Wakeups:
        self._before = {number: signal.signal(number, self._stopped) for number in _STOP}
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stopped(self, *_: object) -> None:
        self.stop = True

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def clear(self) -> bool:
        """Whether there was one."""
        try:
            return bool(self._reader.recv(4096))
        except BlockingIOError:
            return False


class _Owners:
    """Who holds which listener, remembered: to find out anew takes a walk over every descriptor of the machine."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[Holder, int], ...]] = {}

    def learn(self, entries: Sequence[BoundSocket], hints: Collection[int]) -> None:
        """Find the holders of listeners, first among the processes that are said to have opened them."""
        for among in (hints, None):
            unknown = [entry for entry in entries if not self.of(entry.cookie)]
            held = processes.holders([entry.inode for entry in unknown], among)
            for entry in unknown:
                found = held[entry.inode]
                self._known[entry.cookie] = tuple((holder, processes.started(holder.pid)) for holder in found)

    def of(self, cookie: int) -> tuple[Holder, ...]:
        """Those that live; also a number may belong to another process by now."""
        known = self._known.get(cookie, ())
        return tuple(holder for holder, since in known if since and processes.started(holder.pid) == since)

    def pids(self, cookies: Collection[int]) -> set[int]:
        return {holder.pid for cookie in cookies for holder in self.of(cookie)}

    def keep(self, cookies: Collection[int]) -> None:
        """Forget all others."""
        self._known = {cookie: known for cookie, known in self._known.items() if cookie in cookies}


class _Follower:
    def __init__(
        self,
        endpoint: Endpoint,
        root: Path,
        chosen: attach.ChosenPolicy,
        listeners: iterator.Listeners | None,
        tell: Tell,
        wakeups: _Wakeups,
    ) -> None:
        self._endpoint = endpoint
        self._root = root
        self._chosen = chosen
        self._listeners = listeners
        self._tell = tell
        self._wakeups = wakeups
        self._owners = _Owners()
        self._attached: set[Endpoint] = set()
        self._locked: set[Endpoint] = set()
        self._detached: set[Endpoint] = set()
        self._told: set[FollowEvent] = set()
        self._seen: set[int] = set()
        self._hints: dict[int, int] = {}
        self._owed = 0
        self._obstacle: str | None = None
        self._status = ""
        self._looked_at = 0.0
        self._again: Iterator[float] = iter(())

    def start(self) -> None:
        """The first look, whose errors end the follower, unless a listener that just closes is the reason."""
        for wait_s in _AGAIN_S:
            try:
                return self._first_look()
            except (NotFound, MissingCapability):
                time.sleep(wait_s)
        return self._first_look()

    def _first_look(self) -> None:
        present = discover.sockets_of(self._endpoint)
        self._seen = {entry.cookie for entries in present.values() for entry in entries}
        self._again = iter(_AGAIN_S)
        for group, entries in present.items():
            self._look_at(group, entries, first=True)

    def prepare(self) -> None:
        """Have a program ready: compiler and verifier take longer than a group's first listener may wait."""
        with contextlib.suppress(ToolError):  # it is said when a group needs it
            self._chosen.prepare()

    def look(self, events: list[ListenEvent], lost: bool) -> None:
        """Register what has come. `events` are those since the last call, of which others may be `lost`."""
        if events or lost:
            self._again = iter(_AGAIN_S)
        if lost:
            self._tell(FollowEvent(event=Happening.EVENTS_LOST, endpoint=str(self._endpoint)))
        self._hints |= {event.pid: event.time_ns for event in events if event.pid is not None}
        present = discover.sockets_of(self._endpoint)
        self._account(len(events), {entry.cookie for entries in present.values() for entry in entries})
        self._obstacle = None
        for group, entries in present.items():
            try:
                self._look_at(group, entries)
            except ToolError as error:
                self._tell_once(FollowEvent(event=Happening.FAILED, endpoint=str(group), detail=error.message))
        self._tell_manager()

    @property
    def unsettled(self) -> bool:
        """Whether a listener that was announced is not found yet, or could not be taken."""
        return self._owed > 0 or self._obstacle is not None

    def again_s(self) -> float | None:
        """After which time to look again although nothing happened, None for never."""
        wait_s = next(self._again, None) if self.unsettled else None
        if wait_s is None:
            if self._obstacle is not None:
                self._tell_once(
                    FollowEvent(event=Happening.FAILED, endpoint=str(self._endpoint), detail=self._obstacle)
                )
            self._owed, self._obstacle, self._hints = min(0, self._owed), None, {}
        return wait_s

    def status(self) -> str:
        groups = ", ".join(str(group) for group in sorted(self._attached, key=str)) or "nothing listens yet"
        return f"STATUS=following {self._endpoint}: {groups}; {len(self._seen)} listeners"

    def _tell_manager(self) -> None:
        if self.status() != self._status:
            self._status = self.status()
            notify.notify(self._status)

    def _account(self, events: int, present: set[int]) -> None:
        """Each event is to be followed by a listener; one that is seen before its event arrives is a credit."""
        now = time.monotonic()
        if now - self._looked_at > _CREDIT_S:
            self._owed = max(0, self._owed)
        self._owed += events - len(present - self._seen)
        self._seen = present
        self._owners.keep(present)
        self._told = {event for event in self._told if event.cookie is None or event.cookie in present}
        self._looked_at = now

    def _look_at(self, group: Endpoint, entries: list[BoundSocket], first: bool = False) -> None:
        folder = state.group_folder(self._root, group)
        if not State.exists(folder):
            if group in self._attached:
                self._tell_detached(group)
                return
        elif not first and not self._unregistered(folder, entries):
            self._attached.add(group)
            return
        self._detached.discard(group)
        with ExitStack() as stack:
            try:
                stack.enter_context(state.locked(self._root, group, at_once=True))
            except Conflict as error:
                self._await_lock(group, folder, error)
                return
            self._mend(group, folder, first)

    def _unregistered(self, folder: Place, entries: list[BoundSocket]) -> list[BoundSocket]:
        try:
            with State.open(folder) as opened:
                known = opened.registered()
        except NotFound:  # detached meanwhile
            return []
        return [entry for entry in entries if entry.cookie not in known]

    def _await_lock(self, group: Endpoint, folder: Place, conflict: Conflict) -> None:
        """Look again when the lock is free, and serve other groups meanwhile: a reload may take minutes."""
        if group in self._locked:
            return
        self._locked.add(group)
        self._tell(FollowEvent(event=Happening.LOCKED, endpoint=str(group), detail=conflict.message))

        def wait() -> None:
            folders.await_lock(folder)
            self._locked.discard(group)
            self._wakeups.wake()

        threading.Thread(target=wait, daemon=True).start()

    def _mend(self, group: Endpoint, folder: Place, first: bool) -> None:
        """Attach what is not attached, register what is not registered. The caller holds the lock."""
        entries = discover.sockets_in(group)
        if not entries:
            return
        self._owners.learn(entries, self._hints)
        known, interrupted = State.exists(folder), state.is_interrupted(folder)
        if known and (interrupted or not first):
            with State.open(folder) as opened:
                if opened.has_listeners(opened.working):
                    self._join(group, opened, entries)
                    self._attached.add(group)
                    return
        if interrupted:
            self._tell_once(
                FollowEvent(event=Happening.FAILED, endpoint=str(group), detail=f"a reload of {group} was interrupted")
            )
            return
        members = tuple(Member(entry, self._owners.of(entry.cookie)) for entry in entries)
        if not first and not all(member.holders for member in members):
            self._obstacle = f"no process holds a listener on {group}"
            return
        chosen = self._chosen if first or not known else attach.ChosenPolicy(None, None)
        try:
            opened, result, cookies = attach.attach_group(
                Found(group, members),
                chosen,
                folder,
                listeners=self._listeners,
                belongs=self._belongs,
                renew=False,
            )
        except NotFound as error:  # one closed meanwhile, or is on its way from one process to another
            if first:
                raise
            self._obstacle = error.message
            return
        with opened:
            self._attached.add(group)
            if result != "unchanged":
                self._tell(
                    FollowEvent(event=Happening.ATTACHED, endpoint=str(group), generation=opened.working, detail=result)
                )
            slots = {cookie: slot for slot, cookie in opened.slots(opened.working)}
            for cookie in cookies:
                self._tell_registered(group, opened.working, slots.get(cookie), cookie)
            left = self._unregistered(folder, entries)
            self._tell_left(group, [entry for entry in left if self._owners.of(entry.cookie)])

    def _join(self, group: Endpoint, opened: State, entries: list[BoundSocket]) -> None:
        """Register the working generation's new listeners."""
        known = opened.registered()
        new = [entry for entry in entries if entry.cookie not in known]
        families = self._families(opened)
        for entry in new:
            holders = self._owners.of(entry.cookie)
            if not holders:
                self._obstacle = f"no process holds the listener with cookie {entry.cookie}"
            elif kinship.belongs([holder.pid for holder in holders], *families):
                self._register(group, opened, Member(entry, holders))
            else:
                self._tell_left(group, [entry])

    def _register(self, group: Endpoint, opened: State, member: Member) -> None:
        try:
            with discover.descriptors([member]) as fds:
                slot = opened.add(opened.working, fds[member.cookie])
        except NotFound as error:
            self._obstacle = error.message
        except ToolError as error:
            self._tell_once(
                FollowEvent(event=Happening.FAILED, endpoint=str(group), cookie=member.cookie, detail=error.message)
            )
        else:
            self._tell_registered(group, opened.working, slot, member.cookie)

    def _belongs(self, opened: State, cookie: int) -> bool:
        if not opened.has_listeners(opened.working):
            return True
        return kinship.belongs(self._owners.pids([cookie]), *self._families(opened))

    def _families(self, opened: State) -> tuple[Family, Family]:
        """Of the working generation, and of all others that still have listeners."""
        by_generation = {number: opened.slots(number) for number in opened.generations()}
        working = [cookie for _, cookie in by_generation.pop(opened.working, [])]
        others = [cookie for slots in by_generation.values() for _, cookie in slots]
        return Family.of(self._owners.pids(working)), Family.of(self._owners.pids(others))

    def _tell_registered(self, group: Endpoint, generation: int, slot: int | None, cookie: int) -> None:
        pids = self._owners.pids([cookie])
        since = max((self._hints[pid] for pid in pids if pid in self._hints), default=None)
        delay_s = None if since is None else round((time.monotonic_ns() - since) / 1e9, 6)
        pid, command = self._owner(cookie)
        self._tell(
            FollowEvent(
                event=Happening.REGISTERED,
                endpoint=str(group),
                generation=generation,
                slot=slot,
                cookie=cookie,
                pid=pid,
                command=command,
                delay_s=delay_s,
            )
        )

    def _tell_left(self, group: Endpoint, entries: Collection[BoundSocket]) -> None:
        why = "its process is no kin of the working generation's: 'reload --new-pid' or 'map add' takes it in"
        for entry in entries:
            pid, command = self._owner(entry.cookie)
            self._tell_once(
                FollowEvent(
                    event=Happening.LEFT_ALONE,
                    endpoint=str(group),
                    cookie=entry.cookie,
                    pid=pid,
                    command=command,
                    detail=why,
                )
            )

    def _owner(self, cookie: int) -> tuple[int | None, str | None]:
        """Pid and name of one that holds it."""
        pid = min(self._owners.pids([cookie]), default=None)
        return pid, None if pid is None else processes.command(pid)

    def _tell_detached(self, group: Endpoint) -> None:
        if group not in self._detached:
            self._detached.add(group)
            self._tell(FollowEvent(event=Happening.DETACHED, endpoint=str(group), detail="'attach' takes it up again"))

    def _tell_once(self, event: FollowEvent) -> None:
        if event not in self._told:
            self._told.add(event)
            self._tell(event)
