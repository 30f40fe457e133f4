"""Ctrl-C, SIGTERM and SIGHUP during a transaction: at once where it can be undone, later where it cannot."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, except inside shielded().

    A context manager for the main thread; the handlers from before come back at the end.
    """

    def __init__(self) -> None:
        self._shields = 0
        self._pending = False

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._arrived) for number in _NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if self._shields:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def shielded(self, deliver: bool = True) -> Iterator[None]:
        """Hold interrupts back; at the end deliver one that came, or forget it."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._pending and not self._shields:
            self._pending = False
            if deliver:
                raise KeyboardInterrupt
