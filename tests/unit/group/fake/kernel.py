"""A kernel in memory, below group/: listeners, BPF maps and programs.

Pins are real files in a real folder, each with the number of its object, so that renames, locks and rights are the
real ones. What a program would choose is worked out from its maps, as bpf/reuseport.h does.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reuseport_tool.group import layout
from reuseport_tool.kernel.bpf import MapType
from reuseport_tool.kernel.program import ProgramType
from reuseport_tool.models import Endpoint
from tests.unit.group.fake.records import WEB, Object, Sock, packed


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
