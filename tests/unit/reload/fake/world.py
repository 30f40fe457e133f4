"""A world in memory: processes, listeners with queues, groups with a program, and a clock that only waiting moves.

Connections are conserved: each is waiting, answered by somebody, or lost. `tap` is called before every look and every
change, so that a test can fail, interrupt or kill the tool at any of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from reuseport_tool.errors import NotFound
from reuseport_tool.models import Endpoint, LastReload
from reuseport_tool.reload.state import ReloadState, decode, encode
from reuseport_tool.reload.world import World
from tests.unit.reload.fake.clock import FakeClock
from tests.unit.reload.fake.datagrams import FakeDatagrams, FakeGap
from tests.unit.reload.fake.journal import FakeJournal
from tests.unit.reload.fake.listeners import FakeListeners
from tests.unit.reload.fake.pins import FakePins
from tests.unit.reload.fake.processes import FakeProcesses
from tests.unit.reload.fake.records import OURS, SHELL, TOOL, WEB, Pin, Proc, Sock, is_udp
from tests.unit.reload.fake.tell import FakeTell
from tests.unit.reload.fake.traffic import FakeTraffic


class FakeWorld:
    """The state of everything, and the parts of a World over it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.procs: dict[int, Proc] = {}
        self.socks: dict[int, Sock] = {}
        self.pins: dict[Endpoint, Pin] = {}
        self.programs: dict[Endpoint, int] = {}
        self.copies: set[int] = set()
        self.answered: dict[int, int] = {}
        self.lost = 0
        self.migrate_req = "0"
        self.journal: ReloadState | None = None
        self.last: ReloadState | None = None
        self.last_reloads: dict[Endpoint, LastReload] = {}
        self.interrupted = False
        self.shields = 0
        self.tool = TOOL
        self.started: int | None = None
        self.released = False
        self.exit_codes: dict[int, int] = {}
        self.signals: list[tuple[int, int]] = []
        self.said: list[str] = []
        self.hooks: list[str] = []
        self.failing_hooks: set[str] = set()
        self.old_connections = 0
        self.url_answers = True
        self.tap: Callable[[str], None] = lambda name: None
        self.behaviour: Callable[[FakeWorld, int], None] = lambda world, pid: None
        self.on_hook: Callable[[str], None] = lambda command: None
        self.sees_kernel = True
        self.gap_works = True
        self.may_park = True
        self.buffers: dict[int, int] = {}
        self._cookies = itertools.count(1)
        self._pids = itertools.count(200)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for pid, parent in ((1, 0), (SHELL, 1), (TOOL, SHELL)):
            self.procs[pid] = Proc(pid, parent, name={1: "init", SHELL: "sh", TOOL: "reuseport-tool"}[pid])

    # what a test sets up

    def process(self, pid: int | None = None, parent: int = 1, **how: Any) -> int:
        pid = pid or next(self._pids)
        self.procs[pid] = Proc(pid, parent, start=int(self.now * 100), **how)
        return pid

    def listen(self, pid: int, endpoint: Endpoint = WEB, **how: Any) -> int:
        """A new listener that a process holds; while no program is there it gets its share. Returns its cookie."""
        cookie = next(self._cookies)
        self.socks[cookie] = Sock(endpoint, cookie, {pid}, **how)
        return cookie

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        self._events.append((self.now + delay_s, next(self._cookies), act))

    # what happens by itself

    def advance(self, by_s: float) -> None:
        self.now += by_s
        for event in sorted(self._events, key=lambda event: event[:2]):
            if event[0] <= self.now:
                self._events.remove(event)
                event[2]()
        for sock in self.socks.values():
            if sock.accepts and sock.queue and sock.holders:
                pid = min(sock.holders)
                self.answered[pid] = self.answered.get(pid, 0) + sock.queue
                sock.queue = 0

    def end(self, pid: int, code: int = 0) -> None:
        """A process ends: its descriptors close, its children are adopted by the tool or the first process."""
        proc = self.procs.pop(pid, None)
        if proc is None:
            return
        self.exit_codes[pid] = code
        subreaper = self.tool if self._is_below(proc.parent, self.tool) else 1
        for child in self.procs.values():
            if child.parent == pid:
                child.parent = subreaper
        for sock in list(self.socks.values()):
            self.close(sock.cookie, pid)

    def _is_below(self, pid: int, ancestor: int) -> bool:
        while pid in self.procs:
            if pid == ancestor:
                return True
            pid = self.procs[pid].parent
        return False

    def close(self, cookie: int, pid: int) -> None:
        """A process closes a listener; with the last descriptor the kernel moves its queue, or resets it."""
        sock = self.socks.get(cookie)
        if sock is None:
            return
        sock.holders.discard(pid)
        if sock.holders or cookie in self.copies:
            return
        del self.socks[cookie]
        for pin in self.pins.values():
            for members in pin.generations.values():
                members.discard(cookie)
        self._move(sock)
        if all(other.endpoint != sock.endpoint for other in self.socks.values()):
            self.programs.pop(sock.endpoint, None)  # the kernel keeps it with the group

    def _move(self, sock: Sock) -> None:
        if not sock.queue:
            return
        if is_udp(sock):
            self.lost += sock.queue
            return
        left = [other for other in self.socks.values() if other.endpoint == sock.endpoint]
        pin = self.pins.get(sock.endpoint)
        if self.programs.get(sock.endpoint) == OURS and pin is not None:
            chosen = [other for other in left if other.cookie in pin.generations.get(pin.working, set())] or left
            pin.migrated += sock.queue if chosen else 0
        else:
            chosen = left if self.migrate_req == "1" else []
        if chosen:
            chosen[0].queue += sock.queue
        else:
            self.lost += sock.queue

    def pin(self, endpoint: Endpoint) -> Pin:
        if endpoint not in self.pins:
            raise NotFound("nothing is attached")
        return self.pins[endpoint]

    def gets_new(self, endpoint: Endpoint = WEB) -> set[int]:
        """The cookies of the listeners that new connections go to."""
        here = {sock.cookie for sock in self.socks.values() if sock.endpoint == endpoint}
        pin = self.pins.get(endpoint)
        if pin is None or self.programs.get(endpoint) != OURS:
            return here
        return (pin.generations.get(pin.working, set()) & here) or here

    def restart_tool(self) -> None:
        """Another run of the tool, after the first one was killed; a command that it had not let run ends."""
        if self.started is not None and not self.released:
            self.end(self.started)
        for proc in self.procs.values():
            if proc.parent == self.tool:
                proc.parent = 1
        del self.procs[self.tool]
        for cookie in list(self.copies):
            self.copies.discard(cookie)
            self.close(cookie, -1)
        self.tool += 1
        self.procs[self.tool] = Proc(self.tool, SHELL, name="reuseport-tool")
        self.started, self.last, self.interrupted, self.shields = None, None, False, 0
        self.tap = lambda name: None

    def saved(self) -> ReloadState:
        assert self.journal is not None
        return dataclasses.replace(decode(encode(self.journal)), resumed=True)

    def world(self) -> World:
        parts = {
            "clock": FakeClock(self),
            "listeners": FakeListeners(self),
            "pins": FakePins(self),
            "processes": FakeProcesses(self),
            "traffic": FakeTraffic(self),
            "datagrams": FakeDatagrams(self),
            "gap": FakeGap(self),
            "journal": FakeJournal(self),
            "tell": FakeTell(self),
        }
        return World(**{name: Tapped(part, self) for name, part in parts.items()})  # type: ignore[arg-type]


class Tapped:
    """A part of the world whose every call is announced."""

    def __init__(self, part: object, world: FakeWorld) -> None:
        self._part = part
        self._world = world

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if name in ("held_back", "interrupted", "now_s", "wall_s", "own_pid", "last"):
            return method
        if isinstance(self._part, FakeJournal) and name == "remove":
            return method  # nothing could be done about it

        def call(*arguments: Any, **named: Any) -> Any:
            self._world.tap(name)
            return method(*arguments, **named)

        return call
