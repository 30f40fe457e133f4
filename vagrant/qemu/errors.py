"""What can go wrong around a VM. Each class carries the exit code of the command."""

from __future__ import annotations

import errno


class VmError(Exception):
    """The run could not be prepared: a missing package, a full disk, a kernel that cannot be had.

    Attributes:
        exit_code: of the command. Chosen above what test runners return.
        message: one sentence that says what failed.
        hint: what to do about it, or None.
        log: the end of the output that tells more, or None.
    """

    exit_code = 100

    def __init__(self, message: str, *, hint: str | None = None, log: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log


class VmLost(VmError):
    """The guest gave no verdict: it panicked, died, did not boot or ran into its deadline."""

    exit_code = 101


def from_os(error: OSError) -> VmError:
    """The error of an OSError that reached the top."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VmError(f"the disk is full: {error}", hint="free some space, or set REUSEPORT_TOOL_CACHE elsewhere")
    return VmError(str(error))
