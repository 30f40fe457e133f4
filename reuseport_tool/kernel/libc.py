"""System calls that Python does not wrap, by their own names."""

from __future__ import annotations

import ctypes
import os

from reuseport_tool.errors import Unsupported

_libc = ctypes.CDLL(None, use_errno=True)

# bpf(2) is not in the generic table's common range; pidfd_getfd(2) has one number everywhere.
_BPF_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PIDFD_GETFD = 438
_MEMBARRIER_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
# include/uapi/linux/prctl.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER = 47, 3
_PR_SET_CHILD_SUBREAPER = 36


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _unknown(call: str) -> Unsupported:
    return Unsupported(
        f"{call}(2) has no known number on {os.uname().machine}",
        hint=f"the tool runs on {', '.join(_BPF_NUMBERS)}",
    )


def bpf(command: int, attr: ctypes.Structure, what: str) -> int:
    """bpf(2). Raises OSError with `what` in its text."""
    number = _BPF_NUMBERS.get(os.uname().machine)
    if number is None:
        raise _unknown("bpf")
    return _checked(_libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr)), what)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), Linux 5.6. The new fd is close-on-exec."""
    return _checked(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0), "pidfd_getfd")


def membarrier(command: int) -> int:
    """membarrier(2), Linux 4.3. Raises OSError."""
    number = _MEMBARRIER_NUMBERS.get(os.uname().machine)
    if number is None:
        raise _unknown("membarrier")
    return _checked(_libc.syscall(number, command, 0, 0), "membarrier")


def setns(fd: int, kind: int) -> None:
    """setns(2), for the calling thread."""
    _checked(_libc.setns(fd, kind), "setns")


def unshare(kind: int) -> None:
    """unshare(2), for the calling thread."""
    _checked(_libc.unshare(kind), "unshare")


def set_fsuid(uid: int) -> int:
    """setfsuid(2), for the calling thread: the owner of what it makes. Returns the one before; a refusal is silent."""
    return int(_libc.setfsuid(uid))


def filesystem_type(path: str) -> int:
    """f_type of statfs(2): the magic number of the file system that a path is on."""
    buffer = (ctypes.c_long * 32)()
    _checked(_libc.statfs(os.fsencode(path), buffer), f"statfs {path}")
    return int(buffer[0])


def mount(source: str, target: str, kind: str, flags: int = 0, data: str | None = None) -> None:
    """mount(2); `data` are options of the file system."""
    options = None if data is None else data.encode()
    words = (source.encode(), os.fsencode(target), kind.encode())
    _checked(_libc.mount(*words, flags, options), f"mount {target}")


def lower_ambient(capability: int) -> None:
    """prctl(PR_CAP_AMBIENT), for the calling thread. A capability that the kernel does not know is no error."""
    arguments = (_PR_CAP_AMBIENT_LOWER, capability, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, arguments))


def set_child_subreaper(enable: bool) -> None:
    """prctl(PR_SET_CHILD_SUBREAPER): a descendant whose parent ends becomes a child of the calling process."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (enable, 0, 0, 0))), "prctl")
