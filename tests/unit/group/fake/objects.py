"""The BPF maps and programs of a kernel in memory: made, pinned and opened."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reuseport_tool.errors import Conflict, ProgramRejected
from reuseport_tool.kernel import bpf, program
from reuseport_tool.kernel.bpf import MapType, ProgramInfo
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.program import ProgramType
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import CPUS, Object, packed


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
            size = self.value_size * (CPUS if self.type == MapType.PERCPU_ARRAY else 1)
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
            value = self._put(key, number)
        elif self.type == MapType.ARRAY_OF_MAPS:
            value = self._kernel.fds[number].id.to_bytes(4, sys.byteorder)
        self._entry.values[key] = value

    def _put(self, slot: int, fd: int) -> bytes:
        """reuseport_array.c: an empty slot only, and one slot only for each socket."""
        sock = self._kernel.copies[fd]
        if slot in self._entry.values:
            raise OSError(errno.EEXIST, "taken")
        arrays = [entry for entry in self._kernel.objects.values() if entry.type == MapType.REUSEPORT_SOCKARRAY]
        if any(packed(sock.cookie) in entry.values.values() for entry in arrays):
            raise OSError(errno.EBUSY, "in another")
        if not sock.reuseport:
            raise OSError(errno.EINVAL, "no SO_REUSEPORT")
        return packed(sock.cookie)

    def delete(self, key: int | bytes) -> None:
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


class Objects:
    """In the place of functions of kernel/bpf.py and kernel/bpffs.py."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def create(self, kind: MapType, name: str, **how: Any) -> bpf.Map:
        self._kernel.change("create")
        inner = how.pop("inner", None)
        assert (inner is not None) == (kind is MapType.ARRAY_OF_MAPS)
        return FakeMap(self._kernel, self._kernel.make(type=kind, name=name, **how))

    def pin(self, handle: bpf.Handle, place: Place) -> None:
        self._kernel.change("pin")
        with place.parent.opened() as folder:
            fd = os.open(place.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=folder)
            os.write(fd, str(self._kernel.fds[handle.fd].id).encode())
            os.close(fd)

    def open_map(self, place: Place) -> bpf.Map:
        return FakeMap(self._kernel, self._at(place, "map"))

    def open_program(self, place: Place) -> bpf.Program:
        return FakeProgram(self._kernel, self._at(place, "prog"))

    def _at(self, place: Place, kind: str) -> Object:
        with place.file() as fd:
            text = Path(f"/proc/self/fd/{fd}").read_text()
        found = self._kernel.objects.get(int(text)) if text.isdigit() else None
        if found is None or (found.type == ProgramType.SK_REUSEPORT) is not (kind == "prog"):
            raise Conflict(f"{place} is not a {kind}")
        return found

    def by_id(self, number: int, kind: type[FakeMap] | type[FakeProgram]) -> Any:
        if number not in self._kernel.objects or number in self._kernel.gone:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        return kind(self._kernel, self._kernel.objects[number])

    def batch(self, map_: bpf.Map, batch: bpf.Batch, *, begun: bool) -> tuple[int, bool]:
        """All flows at once."""
        assert not begun
        values = self._kernel.fds[map_.fd].values
        for buffer, parts in ((batch.keys, values.keys()), (batch.values, values.values())):
            joined = b"".join(parts)
            buffer[: len(joined)] = joined
        return len(values), True
