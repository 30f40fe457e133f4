"""Writing for a reader who may have stopped reading."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import stat
import time
from typing import Any

_PATIENCE_S = 5.0
_AGAIN_S = 0.01
_PIECE = select.PIPE_BUF  # a pipe takes as much as a whole, or nothing of it


class Patient(io.FileIO):
    """A copy of a descriptor. What cannot be written to it, or is not read for some seconds, is dropped.

    A pipe fills up, a terminal stops at Ctrl-S, and an ssh connection hangs. What must go on does not wait for them.
    From the first drop on nothing is waited for, until something is read again.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(_copy(fd), "w")
        self._patience_s = _PATIENCE_S
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(self.fileno()).st_mode):
            self._socket = socket.socket(fileno=os.dup(self.fileno()))

    def write(self, data: Any) -> int:
        """Raises nothing, and tells nobody what was dropped."""
        left = memoryview(data).cast("B")
        deadline_s = time.monotonic() + self._patience_s
        while left:
            try:
                left = left[self._put(left[:_PIECE]) :]
                self._patience_s = _PATIENCE_S
                deadline_s = time.monotonic() + self._patience_s
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    self._patience_s = 0.0
                    break
                time.sleep(_AGAIN_S)
            except OSError:
                break
        return len(data)

    def _put(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self.fileno(), data)

    def close(self) -> None:
        """Also where it was not made as a whole."""
        if getattr(self, "_socket", None) is not None:
            self._socket.close()  # type: ignore[union-attr]
        super().close()


def _copy(fd: int) -> int:
    """One that never waits: a pipe or a terminal is opened anew, as others have the old opening, too."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(fd)
