"""Processes in /proc: who holds which socket, who is whose parent, signals by pidfd."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from reuseport_tool.errors import MissingCapability, NotFound

_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Holder:
    """A process that has a descriptor of a socket."""

    pid: int
    fd: int


def holders(inodes: Collection[int]) -> dict[int, list[Holder]]:
    """For each socket inode the processes that hold it, one descriptor a process.

    Costs one readlink(2) for each open descriptor of the machine. The caller's own process is left out.
    """
    found: dict[int, list[Holder]] = {inode: [] for inode in inodes}
    if not found:
        return found
    for pid in pids():
        for inode, fd in _socket_fds(pid):
            if inode in found and not any(holder.pid == pid for holder in found[inode]):
                found[inode].append(Holder(pid, fd))
    return found


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
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def command(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return None


def topmost(candidates: Collection[int]) -> list[int]:
    """Those of the processes whose parent is not one of them: the masters, not their workers."""
    return sorted(pid for pid in candidates if parent(pid) not in candidates)


def is_descendant(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or below it."""
    while pid > 1:
        if pid == ancestor:
            return True
        pid = parent(pid)
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
            raise NotFound(f"no process {pid}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that ended already is no error."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise MissingCapability(f"not permitted to signal process {self.pid}", hint="run as root") from error

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Whether it ended, waiting for that at most `timeout_s`."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def close(self) -> None:
        os.close(self._pidfd)
