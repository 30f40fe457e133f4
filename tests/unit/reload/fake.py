"""A world in memory: processes, listeners with queues, groups with a program, and a clock that only waiting moves.

Connections are conserved: each is waiting, answered by somebody, or lost. `tap` is called before every look and every
change, so that a test can fail, interrupt or kill the tool at any of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuseport_tool.errors import Conflict, NotFound, ToolError, Unsupported, UsageError
from reuseport_tool.group.discover import Member
from reuseport_tool.group.pins import AttachedProgram, Running
from reuseport_tool.kernel.commands import Kin, Started
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.kernel.iterator import ListenerInfo, Snapshot, UdpInfo
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.process_tree import ProcessTree, Row
from reuseport_tool.kernel.processes import Holder, ProcessIdentity
from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.kernel.udp_sent import Sent
from reuseport_tool.models import (
    Counters,
    Endpoint,
    FlowMode,
    LastReload,
    Protocol,
    Resets,
    SideResets,
    Step,
    parse_endpoint,
)
from reuseport_tool.reload.state import ReloadState, decode, encode
from reuseport_tool.reload.world import World
from tests.records import some

SHELL, TOOL, OLD = 40, 50, 100
OURS, FOREIGN = 7, 66
OPTIONS = ListenerOptions(**dict.fromkeys((each.name for each in dataclasses.fields(ListenerOptions)), 0))  # type: ignore[arg-type]


def group(text: str) -> Endpoint:
    return parse_endpoint(text)


WEB = group("127.0.0.1:80")


class Killed(BaseException):
    """The tool was killed: from here on it changes nothing any more."""


@dataclass
class Proc:
    """A process. `on_term` says what a SIGTERM does: end, ignore, or a function."""

    pid: int
    parent: int
    name: str = "server"
    executable: str = "/server"
    unit: str | None = None
    start: int = 1
    mark: int = 0
    on_term: Callable[[], None] | str = "end"


@dataclass
class Sock:
    """A listener. `accepts` says that its holders empty its queue at once."""

    endpoint: Endpoint
    cookie: int
    holders: set[int]
    queue: int = 0
    backlog: int = 128
    half_open: int = 0
    accepts: bool = True
    reuseport: bool = True
    options: ListenerOptions = OPTIONS


@dataclass
class Pin:
    """What is pinned of a group."""

    working: int = 1
    generations: dict[int, set[int]] = field(default_factory=dict)
    canary: tuple[int, float] = (0, 0.0)
    migrated: int = 0
    selected: int = 0
    to_canary: int = 0


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


class FakeClock:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def wall_s(self) -> float:
        return self._world.now

    def now_s(self) -> float:
        return self._world.now

    def interrupted(self) -> bool:
        return self._world.interrupted

    def check(self) -> None:
        if self._world.interrupted and not self._world.shields:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        self._world.shields += 1
        try:
            yield
        finally:
            self._world.shields -= 1

    def wait(self, condition: Callable[[], bool], timeout_s: float, told: bool = False, closely_s: float = 0.0) -> bool:
        until = self._world.now + timeout_s
        while not condition():
            self.check()
            if self._world.now >= until:
                return False
            self._world.tap("sleep")
            self._world.advance(0.1 if self._world.now < until - 2 else 0.2)
        self.check()
        return True


class FakeListeners:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def _bound(self, sock: Sock) -> BoundSocket:
        return BoundSocket(
            endpoint=sock.endpoint,
            cookie=sock.cookie,
            inode=sock.cookie + 10_000,
            uid=0,
            accept_queue=None if is_udp(sock) else sock.queue,
            receive_queue=sock.queue if is_udp(sock) else 0,
            backlog=sock.backlog,
            mptcp=False,
        )

    def _member(self, cookie: int, among: Collection[int] | None = None) -> Member:
        sock = self._world.socks[cookie]
        pids = [pid for pid in sorted(sock.holders) if among is None or pid in among]
        return Member(self._bound(sock), tuple(Holder(pid, 3) for pid in pids))

    def everything(self, protocol: Protocol) -> Mapping[Endpoint, tuple[Member, ...]]:
        found: dict[Endpoint, list[Member]] = {}
        for cookie, sock in self._world.socks.items():
            if sock.endpoint.protocol is protocol:
                found.setdefault(sock.endpoint, []).append(self._member(cookie))
        return {endpoint: tuple(members) for endpoint, members in found.items()}

    def on(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        wanted = set(groups)
        return {group: entries for group, entries in self.on_ports(wanted).items() if group in wanted}

    def on_ports(self, groups: Iterable[Endpoint]) -> Mapping[Endpoint, tuple[BoundSocket, ...]]:
        ports = {(each.protocol, each.port) for each in groups}
        found: dict[Endpoint, list[BoundSocket]] = {}
        for sock in self._world.socks.values():
            if (sock.endpoint.protocol, sock.endpoint.port) in ports:
                found.setdefault(sock.endpoint, []).append(self._bound(sock))
        return {endpoint: tuple(entries) for endpoint, entries in found.items()}

    @contextlib.contextmanager
    def watched(self, groups: Collection[Endpoint]) -> Iterator[bool]:
        self._world.tap("watched")
        yield True

    def with_holders(self, entries: Collection[BoundSocket], among: Collection[int] | None) -> tuple[Member, ...]:
        return tuple(self._member(each.cookie, among) for each in entries if each.cookie in self._world.socks)

    def require_visible(self, members: Sequence[Member]) -> None:
        pass

    def kernel(self, wanted: Collection[int] | None = None) -> Snapshot | None:
        if not self._world.sees_kernel:
            return None
        infos = {
            sock.cookie: ListenerInfo(
                cookie=sock.cookie,
                group=1,
                program_id=None,
                index=None,
                group_size=1,
                accept_queue=sock.queue,
                backlog=sock.backlog,
                half_open=sock.half_open,
            )
            for sock in self._world.socks.values()
        }
        return Snapshot(listeners=infos, requests={})

    def is_reuseport(self, member: Member) -> bool:
        sock = self._world.socks.get(member.cookie)
        return sock is None or sock.reuseport

    def options(self, member: Member) -> ListenerOptions:
        if member.cookie not in self._world.socks:
            raise NotFound("closed")
        return self._world.socks[member.cookie].options

    def keep(self, members: Sequence[Member]) -> None:
        self._world.copies |= {member.cookie for member in members}

    def let_go(self) -> None:
        copies, self._world.copies = self._world.copies, set()
        for cookie in copies:
            self._world.close(cookie, -1)


class FakePins:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def _pin(self, endpoint: Endpoint) -> Pin:
        if endpoint not in self._world.pins:
            raise NotFound("nothing is attached")
        return self._world.pins[endpoint]

    def attach(self, endpoint: Endpoint, members: Sequence[Member]) -> AttachedProgram:
        pins, programs = self._world.pins, self._world.programs
        if programs.get(endpoint) not in (None, OURS):
            raise Conflict("a foreign program")
        if endpoint not in pins:
            pins[endpoint] = Pin(generations={1: set()})
        programs[endpoint] = OURS
        pin = pins[endpoint]
        known = set().union(*pin.generations.values())
        pin.generations.setdefault(pin.working, set()).update({member.cookie for member in members} - known)
        counters = self.counters(endpoint)
        assert counters is not None
        return AttachedProgram(working=pin.working, counters=counters)

    def running(self, endpoint: Endpoint) -> Running:
        program = self._world.programs.get(endpoint)
        return Running(ours=program == OURS and endpoint in self._world.pins, program_id=program)

    def attach_again(self, endpoint: Endpoint) -> None:
        self._world.programs[endpoint] = OURS

    def detach(self, endpoint: Endpoint) -> None:
        del self._world.pins[endpoint]
        if self._world.programs.get(endpoint) == OURS:
            del self._world.programs[endpoint]

    def working(self, endpoint: Endpoint) -> int:
        return self._pin(endpoint).working

    def generations(self, endpoint: Endpoint) -> tuple[int, ...]:
        return tuple(sorted(self._pin(endpoint).generations))

    def cookies(self, endpoint: Endpoint, generation: int) -> frozenset[int]:
        return frozenset(self._pin(endpoint).generations.get(generation, set()))

    def make(self, endpoint: Endpoint, generation: int) -> None:
        self._pin(endpoint).generations[generation] = set()

    def put(self, endpoint: Endpoint, generation: int, members: Sequence[Member]) -> None:
        self.take_out(endpoint, [member.cookie for member in members])
        self._pin(endpoint).generations[generation] |= {member.cookie for member in members}

    def take_out(self, endpoint: Endpoint, cookies: Collection[int]) -> None:
        for members in self._pin(endpoint).generations.values():
            members -= set(cookies)

    def remove(self, endpoint: Endpoint, generation: int) -> None:
        del self._pin(endpoint).generations[generation]

    def switch(self, endpoint: Endpoint, generation: int) -> float:
        self._pin(endpoint).working = generation
        self._pin(endpoint).canary = (0, 0.0)
        return 4.2

    def share(self, endpoint: Endpoint, generation: int, percent: float) -> None:
        self._pin(endpoint).canary = (generation, percent)

    def canary(self, endpoint: Endpoint) -> tuple[int, float] | None:
        found = self._pin(endpoint).canary
        return found if found[0] else None

    def counters(self, endpoint: Endpoint) -> Counters | None:
        pin = self._world.pins.get(endpoint)
        if pin is None:
            return None
        return Counters(
            selected=pin.selected,
            fallback=0,
            migrated_established=pin.migrated,
            migrated_syn_recv=0,
            migrated_new_syn_recv=0,
            dropped=0,
            canary=pin.to_canary,
        )


class FakeProcesses:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def tree(self) -> ProcessTree:
        rows = (Row(pid=proc.pid, parent=proc.parent, start_ticks=proc.start) for proc in self._world.procs.values())
        return ProcessTree(rows)

    def runs(self, process: ProcessIdentity) -> bool:
        proc = self._world.procs.get(process.pid)
        return proc is not None and proc.start == process.start_ticks

    def own_pid(self) -> int:
        return self._world.tool

    def bystanders(self, tree: ProcessTree) -> set[int]:
        return {pid for pid, proc in self._world.procs.items() if proc.name == "bystander"}

    def masters(self, pids: Collection[int]) -> list[int]:
        return sorted(self.tree().tops(set(pids)))

    def command(self, pid: int) -> str:
        return self._world.procs[pid].name if pid in self._world.procs else "gone"

    def kin(self, pid: int) -> Kin:
        proc = self._world.procs.get(pid)
        return (
            Kin(unit=proc.unit, executable=proc.executable, parent=proc.parent)
            if proc
            else Kin(unit=None, executable=None, parent=0)
        )

    def waits(self, pid: int) -> bool | None:
        self._world.tap("waits")
        return pid in self._world.procs and self._world.procs[pid].name == "waiter"

    def are_held_up(self, side: Collection[ProcessIdentity]) -> bool:
        return False

    def marked(self, mark: int) -> set[int]:
        return {pid for pid, proc in self._world.procs.items() if proc.mark == mark}

    def start(self, command: Sequence[str] | str, output: Path | None, mark: int) -> Started:
        if command == ("missing",):
            raise UsageError("no such program")
        pid = self._world.process(parent=self._world.tool, executable="/new", mark=mark)
        self._world.started = pid
        return Started(identity=ProcessIdentity(pid, self._world.procs[pid].start), output="/log")

    def release(self) -> None:
        assert self._world.started is not None
        self._world.released = True
        self._world.behaviour(self._world, self._world.started)

    def exit_code(self) -> int | None:
        return self._world.exit_codes.get(self._world.started or 0)

    def signal(self, process: ProcessIdentity, number: int) -> None:
        if not self.runs(process) or not number:
            return
        self._world.signals.append((process.pid, number))
        on_term = self._world.procs[process.pid].on_term
        if number == signal.SIGKILL or on_term == "end":
            self._world.end(process.pid, -number)
        elif callable(on_term):
            on_term()

    def run(self, command: str, timeout_s: float, doing: str) -> None:
        self._world.hooks.append(command)
        self._world.on_hook(command)
        if command in self._world.failing_hooks:
            raise ToolError(f"{doing} exited with 1: {command}")


class FakeConnections:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def count(self) -> int:
        return self._world.old_connections

    def idle_s(self) -> tuple[float | None, float | None]:
        return (1.0, 2.0) if self._world.old_connections else (None, None)

    def end(self) -> int:
        ended, self._world.old_connections = self._world.old_connections, 0
        return ended


class FakeTraffic:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def begin(self, groups: Sequence[Endpoint], kept: Sequence[Endpoint]) -> None:
        pass

    def probe(self, endpoint: Endpoint, steered: bool) -> None:
        pass

    def ask(self, timeout_s: float, steered: bool) -> None:
        if not self._world.url_answers:
            raise ToolError("the URL answers with status 503")

    def mib(self) -> TcpCounters:
        return some(TcpCounters)

    def resets(self) -> Resets | None:
        return Resets(never_accepted=self._world.lost, handshakes=0, refused=0, accepted=0)

    def resets_of(self, side: Collection[ProcessIdentity]) -> SideResets | None:
        return SideResets(never_accepted=0, accepted=0)

    def migrate_req(self) -> str:
        return self._world.migrate_req

    def set_migrate_req(self, value: str) -> None:
        self._world.migrate_req = value

    def old_connections(self, groups: Sequence[Endpoint], side: Collection[ProcessIdentity]) -> FakeConnections:
        return FakeConnections(self._world)


class FakeDatagrams:
    """UDP sockets that read at once; what they send is not counted before a test says so."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def sockets(self) -> Mapping[int, UdpInfo]:
        return {cookie: udp_info(sock) for cookie, sock in self._world.socks.items() if is_udp(sock)}

    def last_seen(self, cookie: int) -> UdpInfo | None:
        return self.sockets().get(cookie)

    def watch(self, cookies: Collection[int]) -> None:
        pass

    def sent(self) -> Mapping[int, Sent]:
        return {}

    def barrier(self) -> None:
        pass

    def flow_mode(self, endpoint: Endpoint) -> FlowMode | None:
        return FlowMode.NONE if endpoint in self._world.pins else None

    def flows(self, endpoint: Endpoint) -> Iterable[RawFlow]:
        return ()

    def keep_flows(self, endpoint: Endpoint, now_s: float) -> None:
        pass

    def kept_flows(self, endpoint: Endpoint) -> None:
        return None

    def connection_ids(self, endpoint: Endpoint) -> int | None:
        return None

    def connected(self, endpoint: Endpoint) -> tuple[BoundSocket, ...]:
        return ()

    def offer(self, endpoint: Endpoint, count: int, steered: bool) -> None:
        pass

    def ask(self, endpoint: Endpoint, payload: bytes, timeout_s: float, steered: bool) -> None:
        if not self._world.url_answers:
            raise ToolError("no answer")


class FakeGap:
    """What is given on waits in the new socket then. `gap_works` says whether it can be."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def check(self, endpoint: Endpoint) -> None:
        if not self._world.gap_works:
            raise Unsupported("no raw sockets")

    def buffers(self, members: Sequence[Member]) -> tuple[int, ...]:
        return tuple(self._world.buffers.get(member.cookie, DEFAULT_BUFFER) for member in members)

    def resize(self, members: Sequence[Member], sizes: Sequence[int]) -> None:
        self._world.buffers |= {member.cookie: size for member, size in zip(members, sizes, strict=True)}

    def give(self, endpoint: Endpoint, cookie: int) -> tuple[int, int]:
        sock = self._world.socks.get(cookie)
        if sock is None or cookie not in self._world.copies or not sock.queue:
            return 0, 0
        taken = min(sock.queue, 2)
        sock.queue -= taken
        new = min(self._world.gets_new(endpoint))
        assert new != cookie
        self._world.socks[new].queue += taken
        self._world.pins[endpoint].selected += taken
        return taken, taken


DEFAULT_BUFFER = 1000


def is_udp(sock: Sock) -> bool:
    return sock.endpoint.protocol is Protocol.UDP


def udp_info(sock: Sock) -> UdpInfo:
    return some(
        UdpInfo, cookie=sock.cookie, group=1, group_size=1, local_port=sock.endpoint.port, receive_queue=sock.queue
    )


class FakeJournal:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def write(self, state: ReloadState) -> None:
        self._world.last = state
        self._world.journal = state

    def last(self) -> ReloadState | None:
        return self._world.last

    def remove(self) -> None:
        self._world.journal = None

    def leave(self, group: Endpoint, last: LastReload) -> None:
        self._world.last_reloads[group] = last


class FakeTell:
    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    def begin(self, step: str) -> None:
        pass

    def end(self, step: Step) -> None:
        pass

    def note(self, message: str) -> None:
        self._world.said.append(message)

    def warn(self, message: str) -> None:
        self._world.said.append(message)
