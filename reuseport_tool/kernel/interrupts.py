"""Waiting that an interrupt may end: Ctrl-C, SIGTERM, a hang-up, and every other signal that would end the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn

_FIRST_S = 0.001
_POLL_S = 0.01
_TOLD_S = 0.1
# All whose default is to end the process and that a process may catch, but for the ones of a fault in its own code.
_NAMES = ("INT", "TERM", "HUP", "QUIT", "ALRM", "USR1", "USR2", "VTALRM", "PROF", "POLL", "PWR", "STKFLT", "XCPU")
_INTERRUPTS = [getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}")]


def not_ignored(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that the process was not started to ignore: nohup(1) and a shell's & mean that they do not end it."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside, and outside of a Clock, each interrupt raises KeyboardInterrupt at once. For the main thread."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        for number in not_ignored(_INTERRUPTS):
            stack.callback(signal.signal, number, signal.signal(number, interrupt))
        yield


class Clock:
    """Time, and interrupts that arrive only where they are asked for: in wait() and check().

    A context manager for the main thread; the handlers from before come back at the end. Signals, the end of a child
    among them, and the events of wake_on() end a pause of wait().
    """

    def __init__(self) -> None:
        self._arrived = False
        self._shields = 0
        self._stack = contextlib.ExitStack()
        self._poll = select.poll()
        self._events: dict[int, Callable[[], object]] = {}

    def __enter__(self) -> Clock:
        for number in not_ignored(_INTERRUPTS):
            self._stack.callback(signal.signal, number, signal.signal(number, self._note))
        self._stack.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stack.callback(os.close, reader)
        self._stack.callback(os.close, writer)
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
        self.wake_on(reader, lambda: os.read(reader, select.PIPE_BUF))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._arrived = True

    def wake_on(self, fd: int, take: Callable[[], object]) -> None:
        """End a pause of wait() when a descriptor is readable; `take` reads what made it so."""
        self._poll.register(fd, select.POLLIN)
        self._events[fd] = take

    def forget(self, fd: int) -> None:
        """The opposite of wake_on()."""
        self._poll.unregister(fd)
        del self._events[fd]

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

    def wait(self, condition: Callable[[], bool], timeout_s: float, told: bool = False, closely_s: float = 0.0) -> bool:
        """Whether the condition came true in time. It is asked at least once. Raises as check().

        It is asked again after each event, and after pauses that become longer, because the kernel tells of a listener
        a moment before it can be found.

        Args:
            told: an event tells when the condition may have come true: the pauses become longer than without.
            closely_s: the pauses stay short for so long: what is looked for may last for a moment only.
        """
        begun_s = time.monotonic()
        deadline_s = begun_s + timeout_s
        pause_s = _FIRST_S
        while not condition():
            self.check()
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return False
            woken = self._pause(min(pause_s, deadline_s - now_s))
            is_close = woken or now_s - begun_s < closely_s
            pause_s = _FIRST_S if is_close else min(2 * pause_s, _TOLD_S if told else _POLL_S)
        self.check()
        return True

    def _pause(self, seconds: float) -> bool:
        """Whether an event ended it."""
        ready = self._poll.poll(seconds * 1000)
        for fd, _ in ready:
            self._events[fd]()
        return bool(ready)
