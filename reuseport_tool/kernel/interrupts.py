"""Waiting that an interrupt may end: Ctrl-C, SIGTERM, a hang-up, and every other signal that would end the process."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

_POLL_S = 0.01
# All whose default is to end the process and that a process may catch, but for the ones of a fault in its own code.
_NAMES = ("INT", "TERM", "HUP", "QUIT", "ALRM", "USR1", "USR2", "VTALRM", "PROF", "POLL", "PWR", "STKFLT", "XCPU")


class Clock:
    """Time, and interrupts that arrive only where they are asked for: in wait() and check().

    A context manager for the main thread; the handlers from before come back at the end.
    """

    def __init__(self) -> None:
        self._arrived = False
        self._shields = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Clock:
        for number in (getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}")):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._arrived = True

    def wall_s(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def now_s(self) -> float:
        """Monotonic."""
        return time.monotonic()

    def interrupted(self) -> bool:
        """Whether an interrupt has arrived."""
        return self._arrived

    def check(self) -> None:
        """Raises KeyboardInterrupt when an interrupt has arrived, unless it is held back."""
        if self._arrived and not self._shields:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Inside, interrupts do not raise."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came true in time. It is asked at least once. Raises as check()."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self.check()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(_POLL_S, left_s))
        self.check()
        return True
