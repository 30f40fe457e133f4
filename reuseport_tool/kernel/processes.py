"""Processes in /proc: who holds which socket, who is whose parent, signals by pidfd."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from reuseport_tool import names
from reuseport_tool.errors import MissingCapability, NotFound, ProgramRejected, Unsupported
from reuseport_tool.kernel import capabilities
from reuseport_tool.kernel.held_sockets import HeldSockets
from reuseport_tool.waiting import readable

STATE, PARENT, SESSION, THREADS, STARTED, STACK = 0, 1, 3, 17, 19, 25
"""Fields of /proc/PID/stat after the name: 3, 4, 6, 20, 22 and 28 of proc(5)."""
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Holder:
    """A process that has a descriptor of a socket."""

    pid: int
    fd: int


def holders(
    inodes: Collection[int], among: Iterable[int] | None = None, at_most: int | None = None
) -> dict[int, list[Holder]]:
    """For each socket inode the processes that hold it, one descriptor a process.

    Costs one walk inside the kernel; or, where no BPF iterator is permitted, one readlink(2) for each open descriptor
    of the machine; or those of the processes `among` which to look. The caller's own process is left out.

    Args:
        at_most: of one socket. Anybody may have thousands of processes that hold thousands of sockets.
    """
    found: dict[int, list[Holder]] = {inode: [] for inode in inodes}
    if not found:
        return found
    ours = os.getpid()
    for inode, pid, fd in _descriptors(among):
        held = found.get(inode)
        if held is None or pid == ours or len(held) == at_most:
            continue
        if not held or held[-1].pid != pid:  # the walk goes from process to process
            held.append(Holder(pid, fd))
    return found


def pids_by_inode() -> dict[int, frozenset[int]]:
    """For each socket inode that a process but ours holds: which do. Costs as holders()."""
    found: dict[int, int | array[int]] = {}
    ours = os.getpid()
    for inode, pid, _ in _descriptors(None):
        if pid == ours:
            continue
        before = found.get(inode)
        if before is None:
            found[inode] = pid
        elif isinstance(before, int):
            found[inode] = array("i", (before, pid))
        else:
            before.append(pid)
    # Mostly one process holds many sockets by itself, or the same processes do.
    alone = functools.cache(lambda pid: frozenset((pid,)))
    together = functools.cache(lambda pids: frozenset(array("i", pids)))
    return {inode: alone(pids) if isinstance(pids, int) else together(pids.tobytes()) for inode, pids in found.items()}


def _descriptors(among: Iterable[int] | None) -> Iterable[tuple[int, int, int]]:
    """(inode, pid, fd) of sockets, by the iterator or by /proc, whose descriptors not everybody may read."""
    chosen = None if among is None else set(among)
    iterator = _iterator()
    if iterator is not None:
        return (held for held in iterator.read() if chosen is None or held[1] in chosen)
    return ((inode, pid, fd) for pid in (pids() if chosen is None else chosen) for inode, fd in _socket_fds(pid))


@functools.cache
def _iterator() -> HeldSockets | None:
    """Loaded once in a process; None where that is not possible."""
    with contextlib.suppress(Unsupported, MissingCapability, ProgramRejected):
        return HeldSockets()
    return None


def some_are_hidden() -> bool:
    """Whether the descriptors of some process cannot be read, so that holders() may miss one."""

    def hidden(pid: int) -> bool:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                os.readlink(f"/proc/{pid}/fd/{fd}")
        except PermissionError:  # also for one that has just ended (proc_fd_access_allowed())
            found = identity(pid)
            return found is not None and found.runs()
        except OSError:
            return False
        return False

    # With hidepid=2 others have no folder at all, not even pid 1, which every PID namespace has.
    return not os.path.exists("/proc/1") or any(map(hidden, pids()))


def pids() -> list[int]:
    """Every process but the calling one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _socket_fds(pid: int) -> Iterator[tuple[int, int]]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):  # it ended, or it is not ours to look at
        for fd in os.listdir(folder):
            with contextlib.suppress(OSError):
                match = _SOCKET_LINK.fullmatch(os.readlink(f"{folder}/{fd}"))
                if match:
                    yield int(match[1]), int(fd)


def parent(pid: int) -> int:
    """The parent's pid, 0 when the process is gone."""
    return _number(pid, PARENT)


def started(pid: int) -> int:
    """When the process started, in clock ticks since boot, so that a later one with its number is told apart; 0 when
    it is gone."""
    return _number(pid, STARTED)


def session(pid: int) -> int:
    """The session's id, 0 when the process is gone or the session began in an outer PID namespace."""
    return _number(pid, SESSION)


def stat_of(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat after the name, which may hold any byte; None when the process is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # a file object takes longer than the reading
        try:
            return os.read(fd, 4096).rpartition(b")")[2].split()
        finally:
            os.close(fd)
    except OSError:
        return None


def has_ended(stat: Sequence[bytes]) -> bool:
    """Whether these fields are of a zombie. A process whose first thread alone has ended is shown as one, too."""
    return stat[STATE] in (b"Z", b"X") and int(stat[THREADS]) <= 1


def _number(pid: int, field: int) -> int:
    """0 when the process is gone."""
    stat = stat_of(pid)
    return int(stat[field]) if stat else 0


@dataclass(frozen=True)
class ProcessIdentity:
    """A process for good: its number and when it started, see started()."""

    pid: int
    start_ticks: int

    def runs(self) -> bool:
        """Whether it has not ended; a zombie has, unless only its first thread ended."""
        stat = stat_of(self.pid)
        return stat is not None and int(stat[STARTED]) == self.start_ticks and not has_ended(stat)


def identity(pid: int) -> ProcessIdentity | None:
    """None when there is no such process."""
    start = started(pid)
    return ProcessIdentity(pid, start) if start else None


def below(ancestors: Collection[int]) -> list[int]:
    """These processes and all that descend from them, as far as they run."""
    return [pid for pid in pids() if any(is_descendant(pid, ancestor) for ancestor in ancestors)]


def command(pid: int) -> str | None:
    """The name that a process has given itself, as names.text() has it; None when it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return names.text(file.read().removesuffix(b"\n"))
    except OSError:
        return None


def no_such(pid: int) -> NotFound:
    """The error for a process that is not there."""
    return NotFound(f"no process {pid}", hint="'sockets --state listen' shows the processes that listen")


def topmost(candidates: Collection[int]) -> list[int]:
    """As Masters.topmost(), by a look of its own."""
    return Masters().topmost(candidates)


class Masters:
    """One look at who is whose parent: it asks the kernel about each process once, and climbs each path once."""

    def __init__(self) -> None:
        self._ours = set(_ancestry(os.getpid()))
        self._parent = functools.cache(parent)
        self._is_plain_fork = functools.cache(_is_plain_fork)
        self._found: dict[frozenset[int], list[int]] = {}

    def topmost(self, pids: Collection[int]) -> list[int]:
        """The masters of the processes: as far up as the parent is one of them, too, or the child a plain fork.

        The second case is a master that leaves the listeners to its workers (gunicorn with --reuse-port):
        it would start a new worker for each that is stopped. Never the calling process or one above it.
        """
        candidates = frozenset(pids)
        if candidates not in self._found:
            self._found[candidates] = self._climb(candidates)
        return self._found[candidates]

    def _climb(self, candidates: frozenset[int]) -> list[int]:
        tops: dict[int, int] = {}
        for pid in candidates:
            path = dict[int, None]()
            while pid not in tops and pid not in path and (above := self._above(pid, candidates)):
                path[pid] = None
                pid = above
            tops[pid] = tops.get(pid, pid)
            tops.update(dict.fromkeys(path, tops[pid]))
        return sorted({tops[pid] for pid in candidates})

    def _above(self, pid: int, candidates: frozenset[int]) -> int:
        """The parent where it is a master of the process, else 0."""
        above = self._parent(pid)
        if above <= 1 or above in self._ours:
            return 0
        return above if above in candidates or self._is_plain_fork(pid, above) else 0


def _ancestry(pid: int) -> Iterator[int]:
    while pid > 0:
        yield pid
        pid = parent(pid)


def _is_plain_fork(child: int, above: int) -> bool:
    """Whether a process was forked and not executed: it still has its parent's stack address.

    execve(2) puts the stack at a random place (field 28 of /proc/PID/stat, proc(5)); fork(2) keeps it.
    """
    try:
        if os.readlink(f"/proc/{child}/exe") != os.readlink(f"/proc/{above}/exe"):
            return False
    except OSError:
        return False
    place = _number(child, STACK)
    return place != 0 and place == _number(above, STACK)


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or below it. All are below pid 1, so that tells nothing and is not counted."""
    if pid == ancestor:
        return True  # also pid 1, which is the server itself in many containers
    while pid > 1:
        pid = parent(pid)
        if pid == ancestor > 1:
            return True
    return False


class Process:
    """A process held by a pidfd, so that a signal never reaches another that got its number.

    Raises NotFound when there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise no_such(pid) from error

    def signal(self, number: int) -> None:
        """Send a signal, or with 0 only try; a process that ended already is no error."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise MissingCapability(
                f"not permitted to signal process {self.pid}", hint=capabilities.hint("CAP_KILL")
            ) from error

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether it ended, waiting for that at most `timeout_s`."""
        return readable(self._pidfd, timeout_s)

    def close(self) -> None:
        os.close(self._pidfd)
