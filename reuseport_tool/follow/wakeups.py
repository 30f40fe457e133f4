"""What ends a follower's poll() besides an event: a signal, or a byte from another thread."""

from __future__ import annotations

import contextlib
import signal
import socket

from reuseport_tool.kernel.interrupts import not_ignored

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Wakeups:
    """A context manager for the main thread. `stop` is true after SIGTERM, SIGINT or SIGHUP, unless that is ignored."""

    def __init__(self) -> None:
        self.stop = False
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def __enter__(self) -> Wakeups:
        self._before = {number: signal.signal(number, self._stopped) for number in not_ignored(_STOP)}
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _stopped(self, *_: object) -> None:
        self.stop = True

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        """From any thread, also when the follower has ended."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._writer.send(b"\0")

    def clear(self) -> bool:
        """Whether there was one."""
        try:
            return bool(self._reader.recv(4096))
        except BlockingIOError:
            return False
