"""Wait until every program that runs now has ended."""

from __future__ import annotations

import contextlib
import time

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import libc

_MEMBARRIER_CMD_GLOBAL = 1
_LONGEST_RUN_S = 0.02


def wait_for_readers() -> None:
    """Return when no run of a program that began before the call is under way.

    MEMBARRIER_CMD_GLOBAL is synchronize_rcu() (kernel/sched/membarrier.c), and the kernel runs a program of a group
    under RCU. It takes 8 to 16 ms. Where it is not permitted a wait of the same length takes its place, which no run
    outlasts that is not preempted for so long.
    """
    with contextlib.suppress(OSError, Unsupported):
        libc.membarrier(_MEMBARRIER_CMD_GLOBAL)
        return
    time.sleep(_LONGEST_RUN_S)
