"""Wait for a condition, with a deadline."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol

_POLL_S = 0.01


class HasDescriptor(Protocol):
    """What select.poll takes."""

    def fileno(self) -> int: ...


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = _POLL_S) -> bool:
    """Whether the condition came true within `timeout_s`. It is asked at least once."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def readable(file: HasDescriptor | int, timeout_s: float) -> bool:
    """Whether a descriptor, also one above 1023, which select(2) does not take, became readable within `timeout_s`."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
