"""The one exception tree of the tool. Each class carries the exit code of the command."""

from __future__ import annotations

import errno


class ToolError(Exception):
    """Something the operator can act on.

    Attributes:
        exit_code: what the process exits with when this error reaches the command line.
        message: one sentence that says what failed.
        hint: what to do about it, or None.
        log: a longer text (a verifier log, a compiler's output) shown with --verbose, or None.
        report: the model of what was done all the same, printed with --json, or None.
    """

    exit_code = 1

    def __init_subclass__(cls, *, exit_code: int | None = None) -> None:
        if exit_code is not None:
            cls.exit_code = exit_code

    def __init__(
        self, message: str, *, hint: str | None = None, log: str | None = None, report: object | None = None
    ) -> None:
        super().__init__(message)
        self.report = report
        self.message = message
        self.hint = hint
        self.log = log

    def after(self, report: object, done: str) -> None:
        """Add what had been done before it failed."""
        self.report = report
        self.message = f"{self.message}; done before that: {done}"


class UsageError(ToolError, exit_code=2):
    """The command line or an endpoint does not make sense."""


class MissingCapability(ToolError, exit_code=3):
    """The kernel refused for want of a capability."""


class Unsupported(ToolError, exit_code=4):
    """The running kernel lacks a feature."""


class ProgramRejected(ToolError, exit_code=5):
    """A BPF program did not compile, or the verifier refused it."""


class NotFound(ToolError, exit_code=6):
    """No such group, listener, generation, process or namespace."""


class Closed(NotFound):
    """A socket closed after it was seen."""


class Conflict(ToolError, exit_code=7):
    """Locked by another run, attached already, a foreign program, a slot or socket in use."""


class RolledBack(ToolError, exit_code=8):
    """A reload failed, and the old generation is working as before."""


class Interrupted(ToolError, exit_code=130):
    """The operator interrupted, and what had been begun is undone."""


_ROOM = {
    errno.EMFILE: "raise the limit: ulimit -n",
    errno.ENFILE: "the whole machine has too many open files: sysctl fs.file-max",
    errno.ENOMEM: "raise the limits: ulimit -v, ulimit -l; 'free' shows the memory",
    errno.EAGAIN: "raise the limit of processes: ulimit -u",
    errno.ENOSPC: "'df' shows which disk is full",
    errno.EFBIG: "raise the limit: ulimit -f",
    errno.EROFS: "it is on a read-only file system: 'findmnt' shows which",
}


def want_of_room(error: BaseException | None) -> ToolError | None:
    """Of an error of the system that a limit is the reason for: our own, which says how to raise it."""
    if isinstance(error, MemoryError):
        return ToolError("out of memory", hint=_ROOM[errno.ENOMEM])
    if isinstance(error, OSError) and error.errno in _ROOM:
        return ToolError(f"{error.filename or 'a system call'}: {error.strerror}", hint=_ROOM[error.errno])
    return None
