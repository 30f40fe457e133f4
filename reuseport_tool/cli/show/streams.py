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
from reuseport_tool.patience import Patient

_REPLACE = "reuseport-tool"
_PLAIN = {"✓": "y", "✗": "n", "→": ">", "±": "~", "×": "x", "µ": "u", "…": "...", "–": "-"}
"""What our own signs become where the encoding of the output has none."""


class NotWritten(ToolError):
    """The result could not be written. `quiet` where its reader has gone, who does not want to hear of it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"the output could not be written: {error.strerror}", hint="what the command did is done all the same"
        )
        self.quiet = error.errno == errno.EPIPE


def _await_room(file: io.FileIO) -> None:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    poll.poll()


class _Result(io.FileIO):
    """A descriptor for results. After the first failure, which is raised, what is written is dropped."""

    _failed = False

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            written = super().write(data)
            while written is None:  # somebody who shares the descriptor has set O_NONBLOCK
                _await_room(self)
                written = super().write(data)
            return written
        except OSError as error:
            self._failed = True
            raise NotWritten(error) from error


class _Message(io.FileIO):
    """A descriptor for messages: they go out by Patient, which nothing holds up."""

    def __init__(self, fd: int, *, closefd: bool = True) -> None:
        super().__init__(fd, "w", closefd=closefd)
        self._patient = Patient(fd)

    def write(self, data: Any) -> int:
        return self._patient.write(data)

    def close(self) -> None:
        """Also where it was not made as a whole."""
        if hasattr(self, "_patient"):
            self._patient.close()
        super().close()


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
    sys.stderr = _text(_Message(2, closefd=False), sys.stderr)


_spare: list[int] = []


def keep_room() -> None:
    """Keep a descriptor for the modules that show an error: it may be that there are no more."""
    with contextlib.suppress(OSError):
        _spare.append(os.open("/", os.O_PATH | os.O_CLOEXEC))


def use_room() -> None:
    """Give it back, for an error is shown now."""
    while _spare:
        os.close(_spare.pop())


def messages() -> TextIO:
    """A stream to what is stderr now, whatever descriptor 2 is captured for later. The caller closes it.

    For what is told while something goes on that must not wait for a reader.
    """
    return _text(_Message(os.dup(2)), sys.stderr)


def events() -> TextIO:
    """The same to stdout."""
    return _text(_Message(os.dup(1)), sys.stdout)


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
