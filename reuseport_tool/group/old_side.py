"""What an old server still holds: accepted connections of processes that have no listener there but old ones.

`status --watch` looks at it again and again, so its cost is bounded: after each look it rests twenty times as long as
the look took.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import replace

from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import diag, processes
from reuseport_tool.models import Group, OldSide, Protocol, Status, parse_endpoint
from reuseport_tool.models.endpoint import unmapped

_REST = 20.0
_NOBODY = frozenset[int]()


class OldSides:
    """Adds to each status what the old sides of its TCP groups hold, as it was at the last look."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._seen: dict[str, OldSide | None] = {}
        self._due_s = 0.0

    def add(self, status: Status) -> Status:
        """The status with the old sides; without them where they cannot be seen."""
        begun_s = self._now_s()
        if begun_s >= self._due_s or any(group.endpoint not in self._seen for group in status.groups):
            self._seen = {group.endpoint: _look(group) for group in status.groups}
            ended_s = self._now_s()
            self._due_s = ended_s + _REST * (ended_s - begun_s)
        groups = (replace(group, old_side=self._seen[group.endpoint]) for group in status.groups)
        return replace(status, groups=tuple(groups))


def _look(group: Group) -> OldSide | None:
    endpoint = parse_endpoint(group.endpoint)
    if endpoint.protocol is not Protocol.TCP:
        return None
    old = {entry.cookie for entry in group.listeners if entry.flag == "old"}
    try:
        listeners = diag.bound_sockets(Protocol.TCP, endpoint.port)
        accepted = [each.inode for each in diag.accepted_sockets(endpoint.port) if _reaches(each, endpoint.address)]
        present = [entry.inode for entry in listeners if entry.cookie not in old]
        held = {
            inode: frozenset(holder.pid for holder in found)
            for inode, found in processes.holders({*accepted, *present} if accepted else ()).items()
        }
    except (ToolError, OSError):
        return None
    if not all(held.get(inode) for inode in accepted) and processes.some_are_hidden():
        return None  # as for a monitor without rights: what it does not see is not nothing
    serving = _NOBODY.union(*(held.get(inode, _NOBODY) for inode in present))
    theirs = [held[inode] for inode in accepted if held[inode] and serving.isdisjoint(held[inode])]
    return OldSide(connections=len(theirs), pids=tuple(sorted(_NOBODY.union(*theirs))), seen_at=time.time())


def _reaches(socket: diag.AcceptedSocket, address: str | None) -> bool:
    """Whether a connection to this local address came to a listener on that one."""
    if address is None:
        return True
    return ipaddress.ip_address(address).is_unspecified or unmapped(socket.address) == unmapped(address)
