"""Where output goes: a stdout whose failures are one error, and a stderr that never fails."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import select
import sys
from typing import Any, TextIO

from reuseport_tool.errors import ToolError

_REPLACE = "reuseport-tool"
_STUCK_S = 5.0
_PLAIN = {"✓": "y", "✗": "n", "→": ">", "±": "~", "×": "x", "µ": "u", "…": "...", "–": "-"}
"""What our own signs become where the encoding of the output has none."""


class NotWritten(ToolError):
    """The result could not be written. `quiet` where its reader has gone, who does not want to hear of it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"the output could not be written: {error.strerror}", hint="what the command did is done all the same"
        )
        self.quiet = error.errno == errno.EPIPE


def _ready(file: io.FileIO, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


class _Result(io.FileIO):
    """A descriptor for results. After the first failure, which is raised, what is written is dropped."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            written = super().write(data)
            while written is None:  # somebody who shares the descriptor has set O_NONBLOCK
                _ready(self, None)
                written = super().write(data)
            return written
        except OSError as error:
            self._failed = True
            raise NotWritten(error) from error


class _Message(io.FileIO):
    """A descriptor for messages, which are dropped where they cannot be written.

    Nor do they wait for ever for a reader: for a pipe that nobody empties, or a terminal that is stopped by Ctrl-S.
    """

    _is_stuck = False

    def write(self, data: Any) -> int:
        size = min(len(data), select.PIPE_BUF)  # what a pipe takes at once when it is ready
        with contextlib.suppress(OSError):
            if self._is_ready():
                return super().write(memoryview(data)[:size]) or 0
        return len(data)

    def _is_ready(self) -> bool:
        """Whether it takes something now, or soon unless it did not before."""
        self._is_stuck = not _ready(self, 0 if self._is_stuck else _STUCK_S)
        return not self._is_stuck


def guard() -> None:
    """Make sure that descriptors 0 to 2 are open, and that writing behaves as this module says."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            continue
        # A file that takes the number of a closed stdout would get the output. Reading and writing fail here.
        opened = os.open(os.devnull, mode)
        if opened != fd:
            os.dup2(opened, fd)
            os.close(opened)
    sys.stdout = _text(_Result(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Message(2, "w", closefd=False), sys.stderr)


def messages() -> TextIO:
    """A stream to what is stderr now, whatever descriptor 2 is captured for later. The caller closes it."""
    return _text(_Message(os.dup(2), "w"), sys.stderr)


def _text(raw: io.FileIO, like: TextIO | None) -> TextIO:
    """A text stream; each line of a message is written at once."""
    is_message = isinstance(raw, _Message)
    encoding = like.encoding if like is not None else "utf-8"
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=encoding, errors=_REPLACE, line_buffering=is_message or raw.isatty())


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if sign in _PLAIN:
        return _PLAIN[sign], error.start + 1
    single = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(single)


codecs.register_error(_REPLACE, _replaced)
