"""Wait for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

_POLL_S = 0.01


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = _POLL_S) -> bool:
    """Whether the condition came true within `timeout_s`. It is asked at least once."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def wait_until_stable(count: Callable[[], int], enough: int | None, settle_s: float, timeout_s: float) -> bool:
    """Wait for `enough` of something, or, for None, for some of it and then no more for `settle_s`."""
    last, since = 0, time.monotonic()

    def settled() -> bool:
        nonlocal last, since
        now = count()
        if now != last:
            last, since = now, time.monotonic()
        if enough is not None:
            return now >= enough
        return now > 0 and time.monotonic() - since >= settle_s

    return wait_until(settled, timeout_s)
