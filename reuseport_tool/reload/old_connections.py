"""The accepted connections that the old side still holds after it stopped listening."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.group.endpoint_sockets import EndpointSockets
from reuseport_tool.kernel import processes, sock_destroy
from reuseport_tool.kernel.abi import NO_IDLE, SocketRecord, TcpState
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.kernel.socket_iterator import Walker, jiffies_per_second
from reuseport_tool.models import Endpoint, Protocol

# A listener is nothing accepted, and no process holds a request socket, or one in TIME_WAIT.
_NOT_ACCEPTED = (TcpState.LISTEN, TcpState.NEW_SYN_RECV, TcpState.TIME_WAIT)
_ACCEPTED = sum(1 << state for state in TcpState if state not in _NOT_ACCEPTED)


class OldConnections(Closing):
    """Looks again and again at what the old side holds. A context manager.

    Args:
        groups: whose connections.
        side: the old side's processes; those that end hold nothing any more.

    Raises:
        Unsupported, MissingCapability: from the iterators.
    """

    def __init__(self, groups: Sequence[Endpoint], side: Collection[ProcessIdentity]) -> None:
        self._groups = groups
        self._side = side
        self._last: list[SocketRecord] = []
        self._idle: tuple[float | None, float | None] = (None, None)
        with ExitStack() as stack:
            self._walker = stack.enter_context(Walker([Protocol.TCP]))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def count(self) -> int:
        """How many there are now."""
        found = self._read()
        self._last, self._idle = found, _idle_s(found) if found else self._idle
        return len(found)

    def idle_s(self) -> tuple[float | None, float | None]:
        """The shortest and the longest time without data, at the last look that saw one."""
        return self._idle

    def _read(self) -> list[SocketRecord]:
        side = {process.pid for process in self._side if process.runs()}
        if not side:
            return []
        raws = self._walker.read()[Protocol.TCP]
        reached = [EndpointSockets(group, raws) for group in self._groups]
        theirs = [raw for raw in raws if _is_accepted(raw) and any(group.covers(raw) for group in reached)]
        held = _pids(theirs)
        return [raw for raw in theirs if not side.isdisjoint(held[raw.inode])]

    def end(self) -> int:
        """End those that were counted, but what another process holds as well. Returns how many ended."""
        side = {process.pid for process in self._side}
        held = _pids(self._last)
        only_theirs = [raw for raw in self._last if held[raw.inode] <= side]
        sock_destroy.end(Protocol.TCP, only_theirs, _ACCEPTED)
        left = {raw.cookie for raw in self._walker.read()[Protocol.TCP] if _is_accepted(raw)}
        return sum(raw.cookie not in left for raw in only_theirs)


def _is_accepted(raw: SocketRecord) -> bool:
    return bool(_ACCEPTED >> raw.state & 1)


def _pids(raws: Collection[SocketRecord]) -> dict[int, set[int]]:
    """Who holds each of these sockets, by inode."""
    found = processes.holders([raw.inode for raw in raws])
    return {inode: {holder.pid for holder in holders} for inode, holders in found.items()}


def _idle_s(raws: Sequence[SocketRecord]) -> tuple[float | None, float | None]:
    known = [round(raw.idle / jiffies_per_second(), 3) for raw in raws if raw.idle != NO_IDLE]
    return (min(known), max(known)) if known else (None, None)
