"""What a follower counts for a group, where `status` finds it: a pinned map, and a lock that ends with the follower.

<group>/follower/           flock(2) of the follower
    resets                  the counts of kernel/resets.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reuseport_tool.errors import Conflict, NotFound, ToolError
from reuseport_tool.kernel import bpffs
from reuseport_tool.kernel.folders import Place, lock, lock_holder
from reuseport_tool.models import Endpoint, Followed

if TYPE_CHECKING:
    from reuseport_tool.kernel.resets import Counts

_FOLDER, _COUNTS = "follower", "resets"


@contextlib.contextmanager
def shown(folder: Place, counts: Counts) -> Iterator[None]:
    """Inside, the counts are to be found in a group's folder. Raises Conflict when another follower's are there."""
    place = folder / _FOLDER
    with lock(place, lambda _holder: False):
        pin = place / _COUNTS
        pin.unlink()  # of a follower that was killed
        bpffs.pin(counts.map, pin)
        try:
            yield
        finally:
            with contextlib.suppress(ToolError):
                pin.unlink()


def is_shown(folder: Place) -> bool:
    """Whether a follower's counts are there."""
    return (folder / _FOLDER / _COUNTS).exists()


def read(folder: Place, group: Endpoint) -> Followed | None:
    """What a running follower has counted; None where none runs, or only one that cannot count."""
    place = folder / _FOLDER
    with contextlib.suppress(NotFound, Conflict, FileNotFoundError):
        info = place.info()
        pid = lock_holder(info) if info is not None else 0
        if pid:
            from reuseport_tool.kernel.resets import Counts

            with Counts(bpffs.open_map(place / _COUNTS)) as counts:
                return Followed(pid=pid, since=counts.begun_at, resets=counts.of(group.port))
    return None
