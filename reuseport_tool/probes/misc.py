"""Type information, file systems, and descriptors of other processes."""

from __future__ import annotations

import errno
import functools
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from reuseport_tool.errors import NotFound, Unsupported
from reuseport_tool.kernel import bpf, bpffs, btf, cgroup, libc, pidfd
from reuseport_tool.kernel.folders import Place
from reuseport_tool.probes.engine import Probe

PIDFD_GETFD = "pidfd_getfd"
BPFFS = "bpffs"

_CLONE_NEWNS, _MS_REC_PRIVATE = 0x00020000, 0x4000 | 1 << 18


def _pidfd_getfd() -> str:
    ours, child_end = socket.socketpair()
    with ours:
        with child_end:
            fd, inode = child_end.fileno(), os.fstat(child_end.fileno()).st_ino
            child = os.fork()
            if child == 0:
                ours.close()
                child_end.recv(1)
                os._exit(0)
        try:
            taken = pidfd.take_fd(child, fd)
            same = os.fstat(taken).st_ino == inode
            os.close(taken)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            os.waitpid(child, 0)
    if not same:
        raise Unsupported("it returned another descriptor")
    return "took a socket of a child process"


def _btf() -> str:
    btf.offset("sock_common", "skc_state")
    return "/sys/kernel/btf/vmlinux"


def _bpffs(folder: Path | None) -> str:
    try:
        mounted = bpffs.find(folder)
    except NotFound as error:
        if folder is not None:
            raise Unsupported(error.message, hint=error.hint) from error
        _in_child(_mount_and_pin)
        return "not mounted; can be, and took a pin"
    _pin_in(mounted)
    return f"mounted at {mounted}, and took a pin"


def _pin_in(folder: Path) -> None:
    place = Place(folder) / f"{bpffs.HOME}-probe-{os.getpid()}"
    with bpf.Map.create(bpf.MapType.ARRAY, "probe") as array:
        bpffs.pin(array, place)
        place.unlink()


def _mount_and_pin() -> None:
    """Mount a bpffs where nobody else sees it. Moves the process into a mount namespace for good."""
    libc.unshare(_CLONE_NEWNS)
    libc.mount("none", "/", "none", _MS_REC_PRIVATE)
    folder = "/sys/fs/bpf" if os.path.isdir("/sys/fs/bpf") else tempfile.gettempdir()
    libc.mount("bpf", folder, "bpf")
    _pin_in(Path(folder))


def _in_child(action: Callable[[], None]) -> None:
    """Run in a child process. Raises the OSError that it raised."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(errno.EIO)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))


def _cgroup2() -> str:
    return f"mounted at {cgroup.root()}"


PROBES = (
    Probe(name=PIDFD_GETFD, since="5.6", needs=("CAP_SYS_PTRACE",), run=_pidfd_getfd),
    Probe(name="BTF", since="5.4", run=_btf),
    Probe(name="cgroup v2", since="4.5", run=_cgroup2),
)


def pins_in(folder: Path | None) -> Probe:
    """Whether a bpffs takes pins: the one at `folder`, None for the usual places."""
    return Probe(name=BPFFS, since="4.4", needs=("CAP_SYS_ADMIN", "CAP_BPF"), run=functools.partial(_bpffs, folder))
