"""libbpf, loaded when it is first needed: BCC brings it along, iproute2 too."""

from __future__ import annotations

import contextlib
import ctypes
import functools

from reuseport_tool.errors import Unsupported

_NAMES = ("libbpf.so.1", "libbpf.so.0")
_POINTER, _TEXT, _U32 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
RING_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_size_t)
_FUNCTIONS = {
    "btf__parse": (_POINTER, [_TEXT, _POINTER]),
    "btf__find_by_name_kind": (ctypes.c_int, [_POINTER, _TEXT, _U32]),
    "btf__type_cnt": (_U32, [_POINTER]),
    "btf__type_by_id": (_POINTER, [_POINTER, _U32]),
    "btf__name_by_offset": (_TEXT, [_POINTER, _U32]),
    "ring_buffer__new": (_POINTER, [ctypes.c_int, RING_CALLBACK, _POINTER, _POINTER]),
    "ring_buffer__consume": (ctypes.c_int, [_POINTER]),
    "ring_buffer__free": (None, [_POINTER]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library with the types of the functions that we call. Raises Unsupported where it is not installed."""
    for name in _NAMES:
        # By the name of the ABI: ctypes.util.find_library() starts two processes to find it.
        with contextlib.suppress(OSError):
            lib = ctypes.CDLL(name, use_errno=True)
            for function, (result, arguments) in _FUNCTIONS.items():
                entry = getattr(lib, function)
                entry.restype, entry.argtypes = result, arguments
            return lib
    raise Unsupported("libbpf is not installed", hint="it comes with BCC (Debian: apt install libbpf1)")


def pointer(result: int | None) -> int | None:
    """A returned pointer, None for a failure: libbpf 0.x answers with an error pointer, 1.x with NULL."""
    return None if not result or result > 2**64 - 4096 else result
