"""The signals that ask a run to end. Each becomes an exception, but not while something is being started."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked us to end. Not an Exception, like KeyboardInterrupt, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def raise_stopped() -> None:
    """From now on the first signal raises Stopped, and the others are ignored.

    SIGINT, too: a shell's background job inherits it ignored, and a run must be stoppable there.
    """
    for number in _ENDING:
        signal.signal(number, _stop)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal that comes in the block waits for its end, by when what the block starts has somebody who ends it."""
    arrived: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, keep) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _stop(number: int, _frame: FrameType | None) -> None:
    for ignored in _ENDING:
        signal.signal(ignored, signal.SIG_IGN)  # nothing may interrupt the clean-up
    raise Stopped(number)
