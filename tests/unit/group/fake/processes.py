"""The processes of a kernel in memory: who holds a socket, and who descends from whom."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from reuseport_tool.kernel.processes import Holder
from tests.unit.group.fake.kernel import Kernel


class Processes:
    """In the place of functions of kernel/processes.py."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def replaced(self) -> dict[str, Any]:
        """By the names of the functions."""
        return {
            "holders": self.holders,
            "topmost": self.topmost,
            "command": lambda pid: None if pid in self._kernel.gone else f"server{pid}",
            "some_are_hidden": lambda: False,
            "started": lambda pid: 0 if pid in self._kernel.gone else pid,
            "session": lambda pid: pid,
            "is_descendant": self.is_descendant,
        }

    def holders(
        self, inodes: Collection[int], among: Collection[int] | None = None, at_most: int | None = None
    ) -> dict[int, list[Holder]]:
        found = {inode: self._kernel.socks[inode - 1] for inode in inodes if inode - 1 in self._kernel.socks}
        return {
            inode: [Holder(found[inode].pid, found[inode].fd)]
            if inode in found and found[inode].pid and (among is None or found[inode].pid in among)
            else []
            for inode in inodes
        }

    def is_descendant(self, pid: int, ancestor: int) -> bool:
        while pid and pid != ancestor:
            pid = self._kernel.parents.get(pid, 0)
        return pid == ancestor

    def topmost(self, pids: Collection[int]) -> list[int]:
        return sorted({pid if self._kernel.parents.get(pid) not in pids else self._kernel.parents[pid] for pid in pids})
