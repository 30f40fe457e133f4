"""Which generation of a group a listener belongs to that nobody registered: told by its processes.

A listener belongs to the working generation if a process that holds it

1. is a master of that generation or descends from one; masters are what a reload would stop (processes.topmost());
2. else, unless it is or descends from a master of another generation that still has listeners, is in the same
   session (setsid(2)) or the same systemd service as a process of the working generation.

So a worker that its master forks, or executes anew, belongs; so does the process of a service that systemd restarts.
A new server that somebody started beside the old one does not: that is for a reload to take in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from reuseport_tool.kernel import cgroup, processes


@dataclass(frozen=True)
class Kinship:
    """The processes of one or several generations."""

    masters: frozenset[int]
    sessions: frozenset[int]
    services: frozenset[str]

    @classmethod
    def of(cls, pids: Collection[int]) -> Kinship:
        masters = processes.topmost(pids)
        everyone = {*pids, *masters}
        return cls(
            frozenset(masters),
            frozenset(filter(None, map(processes.session, everyone))),
            frozenset(filter(None, map(cgroup.service, everyone))),
        )

    def has_below(self, pid: int) -> bool:
        return any(processes.is_descendant(pid, master) for master in self.masters)

    def is_beside(self, pid: int) -> bool:
        return processes.session(pid) in self.sessions or cgroup.service(pid) in self.services


def belongs(pids: Iterable[int], working: Kinship, others: Kinship) -> bool:
    """Whether a listener that these processes hold belongs to the working generation."""
    return any(working.has_below(pid) or (working.is_beside(pid) and not others.has_below(pid)) for pid in pids)
