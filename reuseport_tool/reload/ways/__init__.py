"""The ways in which a group is handed over. A step asks the way of each group; it knows no other difference."""

from __future__ import annotations

from typing import Protocol

from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.ways.datagrams import DatagramWay
from reuseport_tool.reload.ways.program import ProgramWay
from reuseport_tool.reload.ways.sysctl import SysctlWay
from reuseport_tool.reload.world import World


class Way(Protocol):
    """What the steps do with one group. Everything can be done again: what is done already stays as it is."""

    def prepare(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """From here connections that wait already are safe."""

    def check(self, group: GroupState, world: World) -> None:
        """Raises ToolError when somebody else decides about the group's connections by now."""

    def revive(self, group: GroupState, world: World) -> None:
        """Decide again for a group that the kernel has made anew, because the old side's last listener had closed."""

    def number(self, group: GroupState, world: World) -> GroupState:
        """Choose what the new generation will be called; it is written down before it is made."""

    def fill(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Register the new listeners, to which nothing goes yet."""

    def share(self, group: GroupState, world: World, percent: float) -> None:
        """Give the new listeners a share of the new connections."""

    def be_ready(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Raises ToolError where the new listeners must show something before the commit, and do not."""

    def is_switched(self, group: GroupState, world: World) -> bool:
        """Whether the commit is done."""

    def switch(self, state: ReloadState, group: GroupState, world: World) -> float | None:
        """The commit. Returns its duration in microseconds, None where nothing is switched."""

    def undo(self, state: ReloadState, group: GroupState, world: World) -> None:
        """All new connections go to the old listeners, and what the new ones hold will move back to them."""

    def forget(self, group: GroupState, world: World) -> None:
        """Remove what the reload made, after the new side has ended."""

    def finish(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Register listeners that came late, forget the old generation."""


_WAYS: dict[WayName, Way] = {
    WayName.PROGRAM: ProgramWay(),
    WayName.SYSCTL: SysctlWay(),
    WayName.DATAGRAMS: DatagramWay(),
}


def of(group: GroupState) -> Way:
    """The way of a group."""
    return _WAYS[group.way]
