"""pidfd: a copy of another process's file descriptor."""

from __future__ import annotations

import errno
import os

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported
from reuseport_tool.kernel import capabilities, libc


def take_fd(pid: int, fd: int) -> int:
    """A close-on-exec duplicate of descriptor `fd` of process `pid`.

    The duplicate keeps a listener alive after its owner closed it, so hold it as briefly as can be.

    Raises:
        NotFound: the process or the descriptor is gone.
        MissingCapability: ptrace access to the process is refused.
        Unsupported: the kernel has no pidfd_getfd(2) (Linux 5.6).
    """
    try:
        pidfd = os.pidfd_open(pid)
        try:
            return libc.pidfd_getfd(pidfd, fd)
        finally:
            os.close(pidfd)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EBADF):
            raise NotFound(
                f"process {pid} or its descriptor {fd} is gone", hint="'status' shows who holds the listener now"
            ) from error
        if error.errno == errno.EPERM:
            raise MissingCapability(
                f"taking a descriptor of process {pid} is not permitted", hint=capabilities.hint("CAP_SYS_PTRACE")
            ) from error
        if error.errno == errno.ENOSYS:
            raise Unsupported("the kernel has no pidfd_getfd(2)", hint="it came with Linux 5.6") from error
        raise
