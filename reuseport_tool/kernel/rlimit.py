"""Room for open files."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

from reuseport_tool.errors import ToolError


@contextlib.contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """Inside, the soft limit is so many, within the hard one.

    Raises ToolError where the hard limit is lower.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ToolError(f"{wanted} open files are needed, and {hard} are allowed", hint="raise the limit: ulimit -Hn")
    with at_best(wanted):
        yield


@contextlib.contextmanager
def at_best(wanted: int) -> Iterator[None]:
    """Inside, the soft limit is so many, or as many as the hard one permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def as_high_as_may_be() -> Iterator[tuple[int, int]]:
    """Inside, the soft limit is the hard one. Yields the limits from before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield soft, hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def require_room(wanted: int) -> None:
    """Raises OSError, EMFILE or ENFILE, where so many files cannot be opened now: for what fails without saying so."""
    with contextlib.ExitStack() as stack:
        for _ in range(wanted):
            stack.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))


def lock_more_memory() -> bool:
    """Raise RLIMIT_MEMLOCK, against which programs and maps count before Linux 5.11. Returns whether it was raised."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return False
    return True
