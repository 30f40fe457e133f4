"""Threads that have something to do and do not get to do it. The kernel calls that run delay (struct sched_info)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

_HELD_UP = "RDTt"  # waits for a CPU, or runs; waits for a disk; is stopped; is traced


class RunDelay:
    """Compares how long threads have run with what they had at the last look.

    A thread that runs looks like one that waits for a CPU until the next look shows that it got some. A kernel without
    CONFIG_SCHED_INFO does not tell how long a thread has run: nobody is held up there.
    """

    def __init__(self) -> None:
        self._run_ns: dict[str, int] = {}

    def look(self, pids: Iterable[int]) -> bool:
        """Whether a thread of these processes is held up, as far as is known."""
        now = {task: run_ns for pid in pids for task in _held_up(pid) if (run_ns := _run_ns(task))}
        before, self._run_ns = self._run_ns, now
        return any(before.get(task, run_ns) == run_ns for task, run_ns in now.items())


def _held_up(pid: int) -> Iterator[str]:
    """The folders of the threads that do not sleep."""
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            task = f"/proc/{pid}/task/{thread}"
            with contextlib.suppress(OSError), open(f"{task}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0].decode() in _HELD_UP:
                    yield task


def _run_ns(task: str) -> int:
    """How long a thread has had a CPU; 0 where the kernel does not tell, or it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"{task}/schedstat") as file:
        return int(file.read().split()[0])
    return 0
