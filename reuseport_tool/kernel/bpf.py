"""bpf(2): maps, pins, object information, run statistics."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from reuseport_tool import names
from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict, MissingCapability, ToolError
from reuseport_tool.kernel import capabilities, libc, rlimit

T = TypeVar("T", bound=ctypes.Structure)

_F_NO_PREALLOC = 1
_TCX_INGRESS, _F_BEFORE = 46, 1 << 3
_TRACE_ITER = 28  # enum bpf_attach_type


class Command(enum.IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    BTF_LOAD = 18
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    ITER_CREATE = 33
    ENABLE_STATS = 32


class MapType(enum.IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    REUSEPORT_SOCKARRAY = 20
    SK_STORAGE = 24
    RINGBUF = 27


class _MapCreate(ctypes.Structure):
    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
        ("map_ifindex", ctypes.c_uint32),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
    ]


class _BtfLoad(ctypes.Structure):
    _fields_ = [
        ("btf", ctypes.c_uint64),
        ("btf_log_buf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("btf_log_size", ctypes.c_uint32),
        ("btf_log_level", ctypes.c_uint32),
    ]


class _Element(ctypes.Structure):
    _fields_ = [
        ("map_fd", ctypes.c_uint64),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _Object(ctypes.Structure):
    _fields_ = [("pathname", ctypes.c_uint64), ("bpf_fd", ctypes.c_uint32), ("file_flags", ctypes.c_uint32)]


class _Id(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32)]


class _RawTracepoint(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32)]


class _LinkCreate(ctypes.Structure):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class _IterCreate(ctypes.Structure):
    _fields_ = [("link_fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _Info(ctypes.Structure):
    _fields_ = [("bpf_fd", ctypes.c_uint32), ("info_len", ctypes.c_uint32), ("info", ctypes.c_uint64)]


class _EnableStats(ctypes.Structure):
    _fields_ = [("type", ctypes.c_uint32)]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info up to run_cnt (Linux 5.1)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("_until_uid", ctypes.c_uint8 * 32),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("_until_run_time", ctypes.c_uint8 * 112),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    ]


def translate(error: OSError, doing: str) -> ToolError:
    """The tool's error for an OSError of bpf(2) or of a BPF socket option."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return MissingCapability(
            f"the kernel does not permit {doing}",
            hint=capabilities.hint("CAP_BPF", "CAP_PERFMON"),
        )
    return ToolError(f"{doing} failed: {os.strerror(error.errno or 0)}")


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an OSError inside into the tool's error."""
    try:
        yield
    except OSError as error:
        raise translate(error, doing) from error


class Handle(Closing):
    """Owner of one file descriptor of a BPF object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pin(self, path: str, shown: str = "") -> None:
        """BPF_OBJ_PIN: give the object a name on bpffs, so that it outlives the process.

        kernel/bpffs.py has the pins of folders that only we can change.

        Args:
            path: may lead through /proc/self/fd; `shown` is what a message has instead.
        """
        name = ctypes.create_string_buffer(os.fsencode(path))
        attr = _Object(pathname=ctypes.addressof(name), bpf_fd=self.fd)
        with translated(f"pinning {shown or path}"):
            libc.bpf(Command.OBJ_PIN, attr, "pin")


def _obj_get(path: str, kind: str, shown: str) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = _Object(pathname=ctypes.addressof(name))
    try:
        fd = libc.bpf(Command.OBJ_GET, attr, f"open pin {shown}")
    except PermissionError as error:
        if os.path.isdir(path):
            raise _not_a(kind, shown) from error
        raise
    # The name of the file behind it is the only thing that tells (kernel/bpf/syscall.c, anon_inode_getfd()).
    if os.readlink(f"/proc/self/fd/{fd}") in (f"anon_inode:bpf-{kind}", f"anon_inode:bpf_{kind}"):
        return fd
    os.close(fd)
    raise _not_a(kind, shown)


def _not_a(kind: str, path: str) -> Conflict:
    return Conflict(f"{path} is not a {kind}", hint="it is not this tool's: look at it, then remove it")


class Map(Handle):
    """A map whose key is one number of `key_size` bytes. Values are bytes of `value_size`."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        info = _object_info(fd, _MapInfo())
        self.type = info.type
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self.id = info.id
        self.name = names.text(info.name)

    @classmethod
    def create(
        cls,
        kind: MapType,
        name: str,
        *,
        key_size: int = 4,
        value_size: int = 4,
        max_entries: int = 1,
        inner: Map | None = None,
    ) -> Map:
        attr = _MapCreate(
            map_type=kind,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            inner_map_fd=inner.fd if inner else 0,
            map_name=name.encode()[:15],
        )
        with translated(f"creating the map {name}"):
            return cls(_create_map(attr))

    @classmethod
    def create_typed(
        cls, kind: MapType, name: str, *, key_size: int = 4, value_size: int, max_entries: int = 0, locked: bool = False
    ) -> Map:
        """A map without preallocation that has type information, which SK_STORAGE maps need (Linux 5.2).

        Args:
            key_size, value_size: in bytes, multiples of 4.
            locked: the value begins with a struct bpf_spin_lock, which needs it as well.
        """
        with translated(f"creating the map {name}"), _types(key_size, value_size, locked) as types:
            attr = _MapCreate(
                map_type=kind,
                key_size=key_size,
                value_size=value_size,
                max_entries=max_entries,
                map_flags=_F_NO_PREALLOC,
                map_name=name.encode()[:15],
                btf_fd=types.fd,
                btf_key_type_id=1 if kind is MapType.SK_STORAGE else 3,
                btf_value_type_id=5,
            )
            return cls(_create_map(attr))

    @classmethod
    def open(cls, path: str, shown: str = "") -> Map:
        """BPF_OBJ_GET of a pinned map; see Handle.pin(). Raises FileNotFoundError, Conflict for anything but a map."""
        return cls(_obj_get(path, "map", shown or path))

    @classmethod
    def by_id(cls, map_id: int) -> Map:
        """BPF_MAP_GET_FD_BY_ID, which wants CAP_SYS_ADMIN."""
        return cls(libc.bpf(Command.MAP_GET_FD_BY_ID, _Id(id=map_id), f"open map {map_id}"))

    def lookup(self, key: int) -> bytes:
        """The value under a key. Raises OSError (ENOENT for an empty slot)."""
        size = self.value_size
        if self.type == MapType.PERCPU_ARRAY:
            size = (size + 7) // 8 * 8 * possible_cpus()
        value = ctypes.create_string_buffer(size)
        self._element(Command.MAP_LOOKUP_ELEM, key, value)
        return value.raw

    def update(self, key: int, value: bytes, flags: int = 0) -> None:
        buffer = ctypes.create_string_buffer(value, len(value))
        self._element(Command.MAP_UPDATE_ELEM, key, buffer, flags)

    def delete(self, key: int) -> None:
        self._element(Command.MAP_DELETE_ELEM, key, None)

    def every_key(self) -> list[int]:
        """The keys of a hash; one that comes meanwhile may be missing."""
        found: list[int] = []
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            key = ctypes.create_string_buffer(found[-1].to_bytes(self.key_size, sys.byteorder)) if found else None
            attr = _Element(
                map_fd=self.fd,
                key=ctypes.addressof(key) if key is not None else 0,
                value=ctypes.addressof(following),
            )
            try:
                libc.bpf(Command.MAP_GET_NEXT_KEY, attr, "next key")
            except FileNotFoundError:
                return found
            found.append(int.from_bytes(following.raw, sys.byteorder))

    def lookup_u32(self, key: int) -> int:
        with translated("reading a map"):
            return int.from_bytes(self.lookup(key), sys.byteorder)

    def update_u32(self, key: int, value: int, flags: int = 0) -> None:
        with translated("updating a map"):
            self.update(key, value.to_bytes(4, sys.byteorder), flags)

    def _element(self, command: Command, key: int, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0) -> None:
        key_buffer = ctypes.create_string_buffer(key.to_bytes(self.key_size, sys.byteorder), self.key_size)
        attr = _Element(
            map_fd=self.fd,
            key=ctypes.addressof(key_buffer),
            value=ctypes.addressof(value) if value is not None else 0,
            flags=flags,
        )
        libc.bpf(command, attr, command.name)


@dataclass(frozen=True, kw_only=True)
class ProgramInfo:
    """`run_time_ns` and `run_count` grow only while statistics are on."""

    id: int
    type: int
    uid: int
    name: str
    tag: str
    run_time_ns: int
    run_count: int


class Program(Handle):
    """A loaded program."""

    @classmethod
    def open(cls, path: str, shown: str = "") -> Program:
        """BPF_OBJ_GET of a pinned program; as Map.open()."""
        return cls(_obj_get(path, "prog", shown or path))

    @classmethod
    def by_id(cls, program_id: int) -> Program:
        """BPF_PROG_GET_FD_BY_ID, which wants CAP_SYS_ADMIN."""
        return cls(libc.bpf(Command.PROG_GET_FD_BY_ID, _Id(id=program_id), f"open program {program_id}"))

    def map_ids(self) -> tuple[int, ...]:
        """Of the maps that it uses."""
        count = _object_info(self.fd, _ProgInfo()).nr_map_ids
        ids = (ctypes.c_uint32 * count)()
        filled = _object_info(self.fd, _ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids)))
        return tuple(ids[: min(count, filled.nr_map_ids)])

    def info(self) -> ProgramInfo:
        info = _object_info(self.fd, _ProgInfo())
        return ProgramInfo(
            id=info.id,
            type=info.type,
            uid=info.created_by_uid,
            name=names.text(info.name),
            tag=bytes(info.tag).hex(),
            run_time_ns=info.run_time_ns,
            run_count=info.run_cnt,
        )


def _create_map(attr: _MapCreate) -> int:
    try:
        return libc.bpf(Command.MAP_CREATE, attr, "create map")
    except PermissionError:
        if not rlimit.lock_more_memory():
            raise
        return libc.bpf(Command.MAP_CREATE, attr, "create map")


def _types(key_size: int, value_size: int, locked: bool) -> Handle:
    """BTF of `int` (1), struct bpf_spin_lock (2), int[] as large as the key (3), int[] for the rest of the value (4),
    and struct { struct bpf_spin_lock lock; int words[]; } or struct { int words[]; } (5)."""
    names = b"\0int\0bpf_spin_lock\0val\0value\0lock\0words\0"

    def at(name: bytes) -> int:
        return names.index(b"\0" + name + b"\0") + 1

    lock = 4 if locked else 0
    types = struct.pack("=IIII", at(b"int"), 1 << 24, 4, 32)
    types += struct.pack("=IIIIII", at(b"bpf_spin_lock"), 4 << 24 | 1, 4, at(b"val"), 1, 0)
    for size in (key_size, value_size - lock):
        types += struct.pack("=IIIIII", 0, 3 << 24, 0, 1, 1, size // 4)
    types += struct.pack("=III", at(b"value"), 4 << 24 | (2 if locked else 1), value_size)
    if locked:
        types += struct.pack("=III", at(b"lock"), 2, 0)
    types += struct.pack("=III", at(b"words"), 4, lock * 8)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    data = ctypes.create_string_buffer(header + types + names, len(header + types + names))
    return Handle(libc.bpf(Command.BTF_LOAD, _BtfLoad(btf=ctypes.addressof(data), btf_size=len(data)), "load BTF"))


def lookup_batch(attr: ctypes.Structure) -> int:
    """BPF_MAP_LOOKUP_BATCH. Returns 0, or ENOENT when it was the last batch; `count` says how many there are."""
    try:
        libc.bpf(Command.MAP_LOOKUP_BATCH, attr, "reading a map")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return errno.ENOENT
        raise translate(error, "reading a map") from error
    return 0


def _object_info(fd: int, info: T) -> T:
    attr = _Info(bpf_fd=fd, info_len=ctypes.sizeof(info), info=ctypes.addressof(info))
    libc.bpf(Command.OBJ_GET_INFO_BY_FD, attr, "object information")
    return info


def possible_cpus() -> int:
    """The number of per-CPU values: /sys/devices/system/cpu/possible, "0-N" or "0"."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().replace(",", "-").rsplit("-", 1)[-1]) + 1


def enable_stats() -> Handle:
    """BPF_ENABLE_STATS (Linux 5.8): run statistics are on until the handle is closed, also by death."""
    return Handle(libc.bpf(Command.ENABLE_STATS, _EnableStats(type=0), "enable BPF statistics"))


def attach_raw_tracepoint(program: Program, name: str) -> Handle:
    """BPF_RAW_TRACEPOINT_OPEN: the program runs at the tracepoint until the handle is closed, also by death."""
    text = ctypes.create_string_buffer(name.encode())
    attr = _RawTracepoint(name=ctypes.addressof(text), prog_fd=program.fd)
    with translated(f"tracing {name}"):
        return Handle(libc.bpf(Command.RAW_TRACEPOINT_OPEN, attr, f"trace {name}"))


def attach_iterator(program: Program) -> Handle:
    """BPF_LINK_CREATE of an iterator's program (Linux 5.9): what create_iterator() walks by."""
    attr = _LinkCreate(prog_fd=program.fd, attach_type=_TRACE_ITER)
    with translated("attaching an iterator"):
        return Handle(libc.bpf(Command.LINK_CREATE, attr, "attach an iterator"))


def create_iterator(link: Handle) -> Handle:
    """BPF_ITER_CREATE: a file that walks once while it is read."""
    with translated("creating an iterator"):
        return Handle(libc.bpf(Command.ITER_CREATE, _IterCreate(link_fd=link.fd), "create an iterator"))


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info up to the device of a tcx link."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("tcx_ifindex", ctypes.c_uint32),
    ]


class Link(Handle):
    """An attachment."""

    @classmethod
    def open(cls, path: str, shown: str = "") -> Link:
        """BPF_OBJ_GET of a pinned link. Raises FileNotFoundError, and Conflict for anything else than a link."""
        return cls(_obj_get(path, "link", shown or path))

    def device(self) -> int:
        """The device of a tcx link; 0 when the device is gone."""
        return int(_object_info(self.fd, _LinkInfo()).tcx_ifindex)


def attach_tcx(program: Program, device: int) -> Handle:
    """BPF_LINK_CREATE at a device's ingress (Linux 6.6): as attach_cgroup(), before the programs that are there.

    Raises OSError: EINVAL where the kernel has no tcx.
    """
    attr = _LinkCreate(prog_fd=program.fd, target_fd=device, attach_type=_TCX_INGRESS, flags=_F_BEFORE)
    return Handle(libc.bpf(Command.LINK_CREATE, attr, f"attach to device {device}"))


def attach_cgroup(program: Program, cgroup_fd: int, attach_type: int) -> Handle:
    """BPF_LINK_CREATE on a cgroup (Linux 5.7): as attach_raw_tracepoint(); beside other programs there."""
    attr = _LinkCreate(prog_fd=program.fd, target_fd=cgroup_fd, attach_type=attach_type)
    with translated("attaching a program to a cgroup"):
        return Handle(libc.bpf(Command.LINK_CREATE, attr, "attach to a cgroup"))
