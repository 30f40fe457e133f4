"""A kernel in memory, below group/: listeners, BPF maps and programs.

Pins are real files in a real folder, each with the number of its object, so that renames, locks and rights are the
real ones. What a program would choose is worked out from its maps, as bpf/reuseport.h does.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ProgramRejected
from reuseport_tool.group import layout, pins, status
from reuseport_tool.kernel import bpf, bpffs, cgroup, diag, iterator, pidfd, processes, program, sockets
from reuseport_tool.kernel.bpf import MapType, ProgramInfo
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.iterator import ListenerInfo, MemberInfo, UdpInfo
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.kernel.program import ProgramType
from reuseport_tool.models import Endpoint, Protocol, parse_endpoint
from reuseport_tool.probes import programs

WEB = parse_endpoint("127.0.0.1:80")
DNS = parse_endpoint("udp://127.0.0.1:53")
_CPUS = 2


@dataclass(kw_only=True)
class Sock:
    """A bound socket. `part` tells parts of a group that has split."""

    endpoint: Endpoint
    cookie: int
    pid: int
    fd: int
    reuseport: bool = True
    mptcp: bool = False
    queue: int = 0
    part: int = 0


@dataclass(kw_only=True)
class Object:
    """A map, with its `values`, or a program, with its `maps`."""

    id: int
    type: int
    name: str
    key_size: int = 4
    value_size: int = 4
    max_entries: int = 1
    values: dict[Any, bytes] = field(default_factory=dict)
    maps: tuple[int, ...] = ()
    tag: str = ""
    uid: int = field(default_factory=os.geteuid)


class FakeMap(bpf.Map):
    """An open map."""

    def __init__(self, kernel: Kernel, entry: Object) -> None:
        self._kernel, self._entry = kernel, entry
        self.fd = kernel.opened(entry)
        self.type, self.key_size, self.value_size = entry.type, entry.key_size, entry.value_size
        self.max_entries, self.id, self.name = entry.max_entries, entry.id, entry.name

    def close(self) -> None:
        self._kernel.closed(self.fd)
        self.fd = -1

    def lookup(self, key: int) -> bytes:
        if self.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
            size = self.value_size * (_CPUS if self.type == MapType.PERCPU_ARRAY else 1)
            return self._entry.values.get(key, bytes(size))
        if key not in self._entry.values:
            raise OSError(errno.ENOENT, "no such element")
        return self._entry.values[key]

    def update(self, key: int, value: bytes, flags: int = 0) -> None:
        self._kernel.change("update")
        if key >= self.max_entries:
            raise OSError(errno.E2BIG, "too big")
        number = int.from_bytes(value, sys.byteorder)
        if self.type == MapType.REUSEPORT_SOCKARRAY:
            value = self._kernel.put(self._entry, key, number)
        elif self.type == MapType.ARRAY_OF_MAPS:
            value = self._kernel.fds[number].id.to_bytes(4, sys.byteorder)
        self._entry.values[key] = value

    def delete(self, key: int) -> None:
        self._kernel.change("delete")
        if self._entry.values.pop(key, None) is None:
            raise OSError(errno.ENOENT, "no such element")


class FakeProgram(bpf.Program):
    """A loaded program."""

    def __init__(self, kernel: Kernel, entry: Object) -> None:
        self._kernel, self._entry = kernel, entry
        self.fd = kernel.opened(entry)

    def close(self) -> None:
        self._kernel.closed(self.fd)
        self.fd = -1

    def map_ids(self) -> tuple[int, ...]:
        return self._entry.maps

    def info(self) -> ProgramInfo:
        entry = self._entry
        return ProgramInfo(
            id=entry.id, type=entry.type, uid=entry.uid, name=entry.name, tag=entry.tag, run_time_ns=0, run_count=0
        )


class Module:
    """Compiled code. A policy whose file is named `bad` is rejected."""

    def __init__(self, kernel: Kernel, source: program.Source) -> None:
        self._kernel, self._source = kernel, source

    def load(self, name: str, kind: ProgramType, _attach: object, maps: Mapping[str, int]) -> bpf.Program:
        if name == "bad":
            raise ProgramRejected("the verifier rejected bad", hint="-", log="R1 type=inv")
        entry = self._kernel.make(type=kind, name=name, tag=f"{name} {sorted(self._source.defines.items())}")
        entry.maps = tuple(self._kernel.fds[fd].id for fd in maps.values())
        return FakeProgram(self._kernel, entry)

    def close(self) -> None:
        pass


class Kernel:
    """Everything that there is. `tells`: whether the iterator shows which program runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socks: dict[int, Sock] = {}
        self.objects: dict[int, Object] = {}
        self.fds: dict[int, Object] = {}
        self.running: dict[tuple[Endpoint, int], int] = {}
        self.copies: dict[int, Sock] = {}
        self.parents: dict[int, int] = {}
        self.gone: set[int] = set()
        self.tells = True
        self.may_iterate = True
        self.before_change: Callable[[str], None] = lambda name: None
        self._numbers = itertools.count(10_000)

    # what a test does

    def listen(self, pid: int, endpoint: Endpoint = WEB, **how: Any) -> int:
        """A new socket of a process. Returns its cookie."""
        cookie = next(self._numbers)
        self.socks[cookie] = Sock(endpoint=endpoint, cookie=cookie, pid=pid, fd=cookie, **how)
        return cookie

    def close(self, *cookies: int) -> None:
        """The kernel takes closed sockets out of all sockarrays; a program goes with the last socket."""
        for cookie in cookies:
            sock = self.socks.pop(cookie)
            self._take_out(cookie)
            if not any((other.endpoint, other.part) == (sock.endpoint, sock.part) for other in self.socks.values()):
                self.running.pop((sock.endpoint, sock.part), None)

    def _take_out(self, cookie: int) -> None:
        for entry in self.objects.values():
            if entry.type == MapType.REUSEPORT_SOCKARRAY:
                entry.values = {key: value for key, value in entry.values.items() if value != packed(cookie)}

    def foreign(self, endpoint: Endpoint = WEB, part: int = 0) -> int:
        """Somebody else's program runs for the group. Returns its id."""
        made = self.make(type=ProgramType.SK_REUSEPORT, name="theirs")
        self.running[endpoint, part] = made.id
        return made.id

    def chosen(self, endpoint: Endpoint = WEB, part: int = 0) -> set[int]:
        """The cookies that new connections can go to."""
        everybody = {sock.cookie for sock in self.socks.values() if (sock.endpoint, sock.part) == (endpoint, part)}
        running = self.objects.get(self.running.get((endpoint, part), 0))
        maps = {self.objects[number].name: self.objects[number] for number in running.maps} if running else {}
        if "choice" not in maps:
            return everybody
        working = int.from_bytes(maps["choice"].values.get(0, b""), sys.byteorder) % layout.GENERATIONS
        array = self.objects.get(int.from_bytes(maps["generations"].values.get(working, b""), sys.byteorder))
        members = int.from_bytes(maps["members"].values.get(working, b""), sys.byteorder)
        seen = [value for slot, value in array.values.items() if slot < members] if array else []
        return {int.from_bytes(value, sys.byteorder) for value in seen} or everybody

    def pinned(self) -> list[str]:
        """The names below the bpffs."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    # what the fakes do

    def change(self, name: str) -> None:
        self.before_change(name)

    def make(self, **what: Any) -> Object:
        made = Object(id=next(self._numbers), **what)
        self.objects[made.id] = made
        return made

    def opened(self, entry: Object) -> int:
        fd = next(self._numbers)
        self.fds[fd] = entry
        return fd

    def closed(self, fd: int) -> None:
        self.fds.pop(fd, None)

    def put(self, array: Object, slot: int, fd: int) -> bytes:
        """reuseport_array.c: an empty slot only, and one slot only for each socket."""
        sock = self.copies[fd]
        if slot in array.values:
            raise OSError(errno.EEXIST, "taken")
        arrays = [entry for entry in self.objects.values() if entry.type == MapType.REUSEPORT_SOCKARRAY]
        if any(packed(sock.cookie) in entry.values.values() for entry in arrays):
            raise OSError(errno.EBUSY, "in another")
        if not sock.reuseport:
            raise OSError(errno.EINVAL, "no SO_REUSEPORT")
        return packed(sock.cookie)

    def create(self, kind: MapType, name: str, **how: Any) -> bpf.Map:
        self.change("create")
        inner = how.pop("inner", None)
        assert (inner is not None) == (kind is MapType.ARRAY_OF_MAPS)
        return FakeMap(self, self.make(type=kind, name=name, **how))

    def pin(self, handle: bpf.Handle, place: Place) -> None:
        self.change("pin")
        with place.parent.opened() as folder:
            fd = os.open(place.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=folder)
            os.write(fd, str(self.fds[handle.fd].id).encode())
            os.close(fd)

    def open_map(self, place: Place) -> bpf.Map:
        return FakeMap(self, self._at(place, "map"))

    def open_program(self, place: Place) -> bpf.Program:
        return FakeProgram(self, self._at(place, "prog"))

    def _at(self, place: Place, kind: str) -> Object:
        with place.file() as fd:
            text = Path(f"/proc/self/fd/{fd}").read_text()
        found = self.objects.get(int(text)) if text.isdigit() else None
        if found is None or (found.type == ProgramType.SK_REUSEPORT) is not (kind == "prog"):
            raise Conflict(f"{place} is not a {kind}")
        return found

    def by_id(self, number: int, kind: type[FakeMap] | type[FakeProgram]) -> Any:
        if number not in self.objects or number in self.gone:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        return kind(self, self.objects[number])

    def bound(self, protocol: Protocol, port: int = 0, address: str | None = None) -> list[BoundSocket]:
        is_tcp = protocol is Protocol.TCP
        return [
            BoundSocket(
                endpoint=sock.endpoint,
                cookie=sock.cookie,
                inode=sock.cookie + 1,
                uid=0,
                accept_queue=sock.queue if is_tcp else None,
                backlog=128 if is_tcp else None,
                mptcp=sock.mptcp,
            )
            for sock in self.socks.values()
            if sock.endpoint.protocol is protocol
            and port in (0, sock.endpoint.port)
            and address in (None, sock.endpoint.address)
        ]

    def holders(
        self, inodes: Collection[int], among: Collection[int] | None = None, at_most: int | None = None
    ) -> dict[int, list[Holder]]:
        found = {inode: self.socks[inode - 1] for inode in inodes if inode - 1 in self.socks}
        return {
            inode: [Holder(found[inode].pid, found[inode].fd)]
            if inode in found and found[inode].pid and (among is None or found[inode].pid in among)
            else []
            for inode in inodes
        }

    def take_fd(self, pid: int, fd: int) -> int:
        if fd not in self.socks or self.socks[fd].pid != pid:
            raise NotFound("gone")
        copy = os.open(os.devnull, os.O_RDONLY)
        self.copies[copy] = self.socks[fd]
        return copy

    def attach(self, fd: int, attached: bpf.Program) -> None:
        self.change("attach")
        sock = self.copies[fd]
        self.running[sock.endpoint, sock.part] = self.fds[attached.fd].id

    def detach(self, fd: int) -> None:
        self.change("detach")
        sock = self.copies[fd]
        if self.running.pop((sock.endpoint, sock.part), None) is None:
            raise NotFound("the group has no program")

    def infos(self, protocol: Protocol) -> dict[int, MemberInfo]:
        found: dict[int, MemberInfo] = {}
        for sock in self.socks.values():
            if sock.endpoint.protocol is protocol:
                group = [o for o in self.socks.values() if (o.endpoint, o.part) == (sock.endpoint, sock.part)]
                common: dict[str, Any] = {
                    "cookie": sock.cookie,
                    "group": hash((sock.endpoint, sock.part)) & 0xFFFF | 1 if sock.reuseport else 0,
                    "program_id": self.running.get((sock.endpoint, sock.part)),
                    "index": group.index(sock),
                    "group_size": len(group),
                }
                if protocol is Protocol.TCP:
                    found[sock.cookie] = ListenerInfo(**common, accept_queue=sock.queue, backlog=128, half_open=2)
                else:
                    found[sock.cookie] = udp_info(common)
        return found

    @contextlib.contextmanager
    def listeners_of(self, protocol: Protocol, *, ordered: bool = True) -> Iterator[Any]:
        if not self.may_iterate:
            raise MissingCapability("no CAP_PERFMON")
        yield SimpleNamespace(listeners=lambda wanted=None: self.infos(protocol)) if self.tells else None

    def batch(self, map_: bpf.Map, batch: bpf.Batch, *, begun: bool) -> tuple[int, bool]:
        """All flows at once."""
        assert not begun
        values = self.fds[map_.fd].values
        for buffer, parts in ((batch.keys, values.keys()), (batch.values, values.values())):
            joined = b"".join(parts)
            buffer[: len(joined)] = joined
        return len(values), True

    def is_descendant(self, pid: int, ancestor: int) -> bool:
        while pid and pid != ancestor:
            pid = self.parents.get(pid, 0)
        return pid == ancestor

    def topmost(self, pids: Collection[int]) -> list[int]:
        return sorted({pid if self.parents.get(pid) not in pids else self.parents[pid] for pid in pids})


def udp_info(common: dict[str, Any]) -> UdpInfo:
    return UdpInfo(
        **common,
        is_connected=False,
        local=b"\x7f\0\0\1",
        local_port=53,
        remote=bytes(4),
        remote_port=0,
        receive_queue=7,
        send_queue=0,
        drops=3,
    )


def packed(cookie: int) -> bytes:
    return cookie.to_bytes(8, sys.byteorder)


def of_processes(kernel: Kernel) -> dict[str, Any]:
    """In the place of functions of kernel/processes.py."""
    return {
        "holders": kernel.holders,
        "topmost": kernel.topmost,
        "command": lambda pid: None if pid in kernel.gone else f"server{pid}",
        "some_are_hidden": lambda: False,
        "started": lambda pid: 0 if pid in kernel.gone else pid,
        "session": lambda pid: pid,
        "is_descendant": kernel.is_descendant,
    }


def install(monkeypatch: pytest.MonkeyPatch, root: Path) -> Kernel:
    """Put a fake kernel in the place of the real one."""
    kernel = Kernel(root)
    replaced: dict[Any, dict[str, Any]] = {
        bpf.Map: {"create": kernel.create, "by_id": lambda number: kernel.by_id(number, FakeMap)},
        bpf.Program: {"by_id": lambda number: kernel.by_id(number, FakeProgram)},
        bpf: {"lookup_batch": kernel.batch},
        bpffs: {
            "is_bpffs": lambda folder: folder == root,
            "pin": kernel.pin,
            "open_map": kernel.open_map,
            "open_program": kernel.open_program,
        },
        diag: {"bound_sockets": kernel.bound},
        iterator: {"listeners_of": kernel.listeners_of},
        pins: {"listeners_of": kernel.listeners_of},
        status: {"listeners_of": kernel.listeners_of},
        pidfd: {"take_fd": kernel.take_fd},
        processes: of_processes(kernel),
        cgroup: {"service": lambda pid: None},
        program: {"Module": lambda source: Module(kernel, source)},
        programs: {"loads_migrating_program": lambda: True},
        sockets: {
            "cookie": lambda fd: kernel.copies[fd].cookie,
            "is_reuseport": lambda fd: kernel.copies[fd].reuseport,
            "attach_program": kernel.attach,
            "detach_program": kernel.detach,
        },
    }
    for place, names in replaced.items():
        for name, fake in names.items():
            monkeypatch.setattr(place, name, fake)
    return kernel
