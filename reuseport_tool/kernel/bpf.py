"""bpf(2) by libbpf: maps, pins, object information, run statistics."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import functools
import os
import sys
from collections.abc import Iterator
from ctypes import c_uint8 as u8
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from typing import ClassVar, Self, TypeVar

from reuseport_tool import names
from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict, MissingCapability, ToolError
from reuseport_tool.kernel import capabilities, libbpf, rlimit
from reuseport_tool.record import record

T = TypeVar("T", bound=ctypes.Structure)

_F_NO_PREALLOC = 1
_TCX_INGRESS, _F_BEFORE = 46, 1 << 3
_TRACE_ITER = 28  # enum bpf_attach_type


class MapType(enum.IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    REUSEPORT_SOCKARRAY = 20
    SK_STORAGE = 24
    RINGBUF = 27


class _MapCreateOpts(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf up to map_flags."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", u32),
        ("btf_key_type_id", u32),
        ("btf_value_type_id", u32),
        ("btf_vmlinux_value_type_id", u32),
        ("inner_map_fd", u32),
        ("map_flags", u32),
    ]


class _LinkCreateOpts(ctypes.Structure):
    """struct bpf_link_create_opts of libbpf up to flags."""

    _fields_ = [("sz", ctypes.c_size_t), ("flags", u32)]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", u32),
        ("id", u32),
        ("key_size", u32),
        ("value_size", u32),
        ("max_entries", u32),
        ("map_flags", u32),
        ("name", ctypes.c_char * 16),
    ]


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info up to run_cnt (Linux 5.1)."""

    _fields_ = [
        ("type", u32),
        ("id", u32),
        ("tag", u8 * 8),
        ("_until_uid", u8 * 32),
        ("created_by_uid", u32),
        ("nr_map_ids", u32),
        ("map_ids", u64),
        ("name", ctypes.c_char * 16),
        ("_until_run_time", u8 * 112),
        ("run_time_ns", u64),
        ("run_cnt", u64),
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

    _kind: ClassVar[str]  # as the kernel's functions call it

    @classmethod
    def open(cls, path: str, shown: str = "") -> Self:
        """BPF_OBJ_GET of a pinned object; see pin(). Raises FileNotFoundError, Conflict for one of another kind."""
        return cls(_obj_get(path, cls._kind, shown or path))

    @classmethod
    def by_id(cls, number: int) -> Self:
        """BPF_MAP_GET_FD_BY_ID and the like, which want CAP_SYS_ADMIN."""
        return cls(libbpf.call(f"bpf_{cls._kind}_get_fd_by_id", number, what=f"open {cls.__name__.lower()} {number}"))

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
        with translated(f"pinning {shown or path}"):
            libbpf.call("bpf_obj_pin", self.fd, os.fsencode(path))


def _obj_get(path: str, kind: str, shown: str) -> int:
    try:
        fd = libbpf.call("bpf_obj_get", os.fsencode(path), what=f"open pin {shown}")
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

    _kind = "map"

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
        opts = _MapCreateOpts(inner_map_fd=inner.fd if inner else 0)
        with translated(f"creating the map {name}"):
            return cls(_create_map(kind, name, (key_size, value_size, max_entries), opts))

    @classmethod
    def create_typed(
        cls, kind: MapType, name: str, *, key_size: int = 4, value_size: int, max_entries: int = 0, locked: bool = False
    ) -> Map:
        """A map without preallocation that has type information, which SK_STORAGE maps need (Linux 5.2).

        Args:
            key_size, value_size: in bytes, multiples of 4.
            locked: the value begins with a struct bpf_spin_lock, which needs it as well.
        """
        with translated(f"creating the map {name}"), libbpf.types(key_size, value_size, locked=locked) as types:
            opts = _MapCreateOpts(
                map_flags=_F_NO_PREALLOC,
                btf_fd=types.fd,
                btf_key_type_id=types.number if kind is MapType.SK_STORAGE else types.key,
                btf_value_type_id=types.value,
            )
            return cls(_create_map(kind, name, (key_size, value_size, max_entries), opts))

    def lookup(self, key: int) -> bytes:
        """The value under a key. Raises OSError (ENOENT for an empty slot)."""
        size = self.value_size
        if self.type == MapType.PERCPU_ARRAY:
            size = (size + 7) // 8 * 8 * possible_cpus()
        value = ctypes.create_string_buffer(size)
        libbpf.call("bpf_map_lookup_elem", self.fd, self._key(key), value)
        return value.raw

    def update(self, key: int, value: bytes, flags: int = 0) -> None:
        libbpf.call("bpf_map_update_elem", self.fd, self._key(key), value, flags)

    def delete(self, key: int | bytes) -> None:
        libbpf.call("bpf_map_delete_elem", self.fd, key if isinstance(key, bytes) else self._key(key))

    def every_key(self) -> list[int]:
        """The keys of a hash; one that comes meanwhile may be missing."""
        found: list[int] = []
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            key = self._key(found[-1]) if found else None
            try:
                libbpf.call("bpf_map_get_next_key", self.fd, key, following)
            except FileNotFoundError:
                return found
            found.append(int.from_bytes(following.raw, sys.byteorder))

    def lookup_u32(self, key: int) -> int:
        with translated("reading a map"):
            return int.from_bytes(self.lookup(key), sys.byteorder)

    def update_u32(self, key: int, value: int, flags: int = 0) -> None:
        with translated("updating a map"):
            self.update(key, value.to_bytes(4, sys.byteorder), flags)

    def _key(self, key: int) -> bytes:
        return key.to_bytes(self.key_size, sys.byteorder)


def _create_map(kind: MapType, name: str, sizes: tuple[int, int, int], opts: _MapCreateOpts) -> int:
    """Sizes: of a key, of a value, and the number of entries."""
    opts.sz = ctypes.sizeof(opts)
    arguments = (kind, name.encode(), *sizes, ctypes.byref(opts))
    try:
        return libbpf.call("bpf_map_create", *arguments)
    except PermissionError:
        if not rlimit.lock_more_memory():
            raise
        return libbpf.call("bpf_map_create", *arguments)


@record
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

    _kind = "prog"

    def map_ids(self) -> tuple[int, ...]:
        """Of the maps that it uses."""
        count = _object_info(self.fd, _ProgInfo()).nr_map_ids
        ids = (u32 * count)()
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


@record
class Batch:
    """Where a hash's elements are copied to: `count` of them at a time; `place` is the kernel's bookmark (8 bytes)."""

    place: ctypes.Array[ctypes.c_char]
    keys: ctypes.Array[ctypes.c_char]
    values: ctypes.Array[ctypes.c_char]
    count: int


def lookup_batch(map_: Map, batch: Batch, *, begun: bool) -> tuple[int, bool]:
    """BPF_MAP_LOOKUP_BATCH (Linux 5.6). Returns how many elements there are, and whether these were the last."""
    count = u32(batch.count)
    start = batch.place if begun else None
    try:
        libbpf.call(
            "bpf_map_lookup_batch", map_.fd, start, batch.place, batch.keys, batch.values, ctypes.byref(count), None
        )
    except FileNotFoundError:
        return count.value, True
    except OSError as error:
        raise translate(error, "reading a map") from error
    return count.value, False


def _object_info(fd: int, info: T) -> T:
    libbpf.call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(u32(ctypes.sizeof(info))))
    return info


@functools.cache
def possible_cpus() -> int:
    """The number of per-CPU values: /sys/devices/system/cpu/possible, "0-N" or "0"."""
    with open("/sys/devices/system/cpu/possible") as file:
        return int(file.read().strip().replace(",", "-").rsplit("-", 1)[-1]) + 1


def enable_stats() -> Handle:
    """BPF_ENABLE_STATS (Linux 5.8): run statistics are on until the handle is closed, also by death."""
    return Handle(libbpf.call("bpf_enable_stats", 0))


def attach_raw_tracepoint(program: Program, name: str) -> Handle:
    """BPF_RAW_TRACEPOINT_OPEN: the program runs at the tracepoint until the handle is closed, also by death."""
    with translated(f"tracing {name}"):
        return Handle(libbpf.call("bpf_raw_tracepoint_open", name.encode(), program.fd))


def attach_iterator(program: Program) -> Handle:
    """BPF_LINK_CREATE of an iterator's program (Linux 5.9): what create_iterator() walks by."""
    with translated("attaching an iterator"):
        return Handle(libbpf.call("bpf_link_create", program.fd, 0, _TRACE_ITER, None))


def create_iterator(link: Handle) -> Handle:
    """BPF_ITER_CREATE: a file that walks once while it is read."""
    with translated("creating an iterator"):
        return Handle(libbpf.call("bpf_iter_create", link.fd))


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info up to the device of a tcx link."""

    _fields_ = [
        ("type", u32),
        ("id", u32),
        ("prog_id", u32),
        ("_pad", u32),
        ("tcx_ifindex", u32),
    ]


class Link(Handle):
    """An attachment."""

    _kind = "link"

    def device(self) -> int:
        """The device of a tcx link; 0 when the device is gone."""
        return int(_object_info(self.fd, _LinkInfo()).tcx_ifindex)


def attach_tcx(program: Program, device: int) -> Handle:
    """BPF_LINK_CREATE at a device's ingress (Linux 6.6): as attach_cgroup(), before the programs that are there.

    Raises OSError: EINVAL where the kernel has no tcx.
    """
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=_F_BEFORE)
    what = f"attach to device {device}"
    return Handle(libbpf.call("bpf_link_create", program.fd, device, _TCX_INGRESS, ctypes.byref(opts), what=what))


def attach_cgroup(program: Program, cgroup_fd: int, attach_type: int) -> Handle:
    """BPF_LINK_CREATE on a cgroup (Linux 5.7): as attach_raw_tracepoint(); beside other programs there."""
    with translated("attaching a program to a cgroup"):
        return Handle(libbpf.call("bpf_link_create", program.fd, cgroup_fd, attach_type, None))
