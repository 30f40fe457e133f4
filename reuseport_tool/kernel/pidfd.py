"""pidfd: a copy of another process's file descriptor."""

from __future__ import annotations

import contextlib
import errno
import os

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported
from reuseport_tool.kernel import capabilities, libc, processes

_PIDFD_THREAD = os.O_EXCL  # include/uapi/linux/pidfd.h, Linux 6.9


def take_fd(pid: int, fd: int) -> int:
    """A close-on-exec duplicate of descriptor `fd` of process `pid`.

    The duplicate keeps a listener alive after its owner closed it, so hold it as briefly as can be.

    Raises:
        NotFound: the process or the descriptor is gone.
        MissingCapability: ptrace access to the process is refused.
        Unsupported: the kernel has no pidfd_getfd(2) (Linux 5.6); or the first thread has ended, and there are
            no pidfds of threads (Linux 6.9).
    """
    try:
        return _taken(pid, fd)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EBADF):
            raise NotFound(
                f"process {pid} or its descriptor {fd} is gone", hint="'status' shows who holds the listener now"
            ) from error
        if error.errno == errno.EPERM:
            raise MissingCapability(
                f"taking a descriptor of process {pid} is not permitted", hint=capabilities.hint("CAP_SYS_PTRACE")
            ) from error
        if error.errno == errno.EINVAL:
            raise Unsupported(
                f"the first thread of process {pid} has ended, and the kernel cannot take descriptors of another one",
                hint="it can since Linux 6.9",
            ) from error
        if error.errno == errno.ENOSYS:
            raise Unsupported("the kernel has no pidfd_getfd(2)", hint="it came with Linux 5.6") from error
        raise


def _taken(pid: int, fd: int) -> int:
    try:
        return _copied(pid, 0, fd)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EBADF) or not _is_headless(pid):
            raise
    for thread in os.listdir(f"/proc/{pid}/task"):
        if int(thread) != pid:
            with contextlib.suppress(ProcessLookupError):
                return _copied(int(thread), _PIDFD_THREAD, fd)
    raise ProcessLookupError(errno.ESRCH, "all threads have ended")


def _copied(task: int, flags: int, fd: int) -> int:
    pidfd = os.pidfd_open(task, flags)
    try:
        return libc.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)


def _is_headless(pid: int) -> bool:
    """Whether the process's first thread, whose descriptors a plain pidfd means, has ended before the others."""
    stat = processes.stat_of(pid)
    return stat is not None and stat[processes.STATE] == b"Z" and not processes.has_ended(stat)
