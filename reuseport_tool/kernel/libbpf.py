"""libbpf 1.x, loaded when it is first needed: BCC brings it along, iproute2 too."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from typing import Any

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import rlimit
from reuseport_tool.record import record

_NAME = "libbpf.so.1"
_POINTER, _TEXT, _U32, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_int
_BTF_INT_SIGNED = 1
RING_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_size_t)
_FUNCTIONS = {
    "bpf_map_create": (_INT, [_U32, _TEXT, _U32, _U32, _U32, _POINTER]),
    "bpf_map_lookup_elem": (_INT, [_INT, _POINTER, _POINTER]),
    "bpf_map_update_elem": (_INT, [_INT, _POINTER, _POINTER, ctypes.c_uint64]),
    "bpf_map_delete_elem": (_INT, [_INT, _POINTER]),
    "bpf_map_get_next_key": (_INT, [_INT, _POINTER, _POINTER]),
    "bpf_map_lookup_batch": (_INT, [_INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER]),
    "bpf_obj_pin": (_INT, [_INT, _TEXT]),
    "bpf_obj_get": (_INT, [_TEXT]),
    "bpf_map_get_fd_by_id": (_INT, [_U32]),
    "bpf_prog_get_fd_by_id": (_INT, [_U32]),
    "bpf_obj_get_info_by_fd": (_INT, [_INT, _POINTER, _POINTER]),
    "bpf_raw_tracepoint_open": (_INT, [_TEXT, _INT]),
    "bpf_link_create": (_INT, [_INT, _INT, _U32, _POINTER]),
    "bpf_iter_create": (_INT, [_INT]),
    "bpf_enable_stats": (_INT, [_U32]),
    "btf__parse": (_POINTER, [_TEXT, _POINTER]),
    "btf__new_empty": (_POINTER, []),
    "btf__free": (None, [_POINTER]),
    "btf__fd": (_INT, [_POINTER]),
    "btf__load_into_kernel": (_INT, [_POINTER]),
    "btf__add_int": (_INT, [_POINTER, _TEXT, ctypes.c_size_t, _INT]),
    "btf__add_struct": (_INT, [_POINTER, _TEXT, _U32]),
    "btf__add_field": (_INT, [_POINTER, _TEXT, _INT, _U32, _U32]),
    "btf__add_array": (_INT, [_POINTER, _INT, _INT, _U32]),
    "btf__find_by_name_kind": (_INT, [_POINTER, _TEXT, _U32]),
    "btf__type_cnt": (_U32, [_POINTER]),
    "btf__type_by_id": (_POINTER, [_POINTER, _U32]),
    "btf__name_by_offset": (_TEXT, [_POINTER, _U32]),
    "ring_buffer__new": (_POINTER, [_INT, RING_CALLBACK, _POINTER, _POINTER]),
    "ring_buffer__consume": (_INT, [_POINTER]),
    "ring_buffer__free": (None, [_POINTER]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library with the types of the functions that we call. Raises Unsupported where it is not installed."""
    try:
        # By the name of the ABI: ctypes.util.find_library() starts two processes to find it.
        lib = ctypes.CDLL(_NAME, use_errno=True)
    except OSError as error:
        rlimit.require_room(1)
        raise Unsupported(
            "libbpf 1.0 or newer is not installed", hint="it comes with BCC (Debian: apt install libbpf1)"
        ) from error
    for function, (result, arguments) in _FUNCTIONS.items():
        entry = getattr(lib, function)
        entry.restype, entry.argtypes = result, arguments
    return lib


def call(function: str, *arguments: Any, what: str = "") -> int:
    """A function that returns a number, or a negative errno. Raises OSError with `what`, or its name, in the text."""
    result = int(getattr(library(), function)(*arguments))
    if result < 0:
        raise OSError(-result, f"{what or function}: {os.strerror(-result)}")
    return result


def pointer(function: str, *arguments: Any) -> int:
    """A function that returns a pointer. Raises OSError."""
    result = getattr(library(), function)(*arguments)
    if not result:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
    return int(result)


@record
class Types:
    """Type information in the kernel: its descriptor, and the ids of `int`, of a map's key and of its value."""

    fd: int
    number: int
    key: int
    value: int


@contextlib.contextmanager
def types(key_size: int, value_size: int, *, locked: bool) -> Iterator[Types]:
    """The types of a key int[] and of a value struct { int words[]; }, which begins with a struct bpf_spin_lock if
    it is `locked`. Sizes are in bytes, multiples of 4. Raises OSError."""
    lib, lock_size = library(), 4 if locked else 0
    btf = lib.btf__new_empty()
    try:
        number = call("btf__add_int", btf, b"int", 4, _BTF_INT_SIGNED)
        lock = call("btf__add_struct", btf, b"bpf_spin_lock", 4)
        call("btf__add_field", btf, b"val", number, 0, 0)
        key = call("btf__add_array", btf, number, number, key_size // 4)
        words = call("btf__add_array", btf, number, number, (value_size - lock_size) // 4)
        value = call("btf__add_struct", btf, b"value", value_size)
        if locked:
            call("btf__add_field", btf, b"lock", lock, 0, 0)
        call("btf__add_field", btf, b"words", words, lock_size * 8, 0)
        call("btf__load_into_kernel", btf, what="load BTF")
        yield Types(fd=lib.btf__fd(btf), number=number, key=key, value=value)
    finally:
        lib.btf__free(btf)
