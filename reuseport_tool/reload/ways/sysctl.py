"""The kernel migrates by its own hash over the group, or whatever program the servers attach decides."""

from __future__ import annotations

from reuseport_tool.errors import Conflict
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.world import World


class SysctlWay:
    """See the protocol Way. New connections are shared by both sides from the moment that the new one listens."""

    def prepare(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Raises Conflict when the program is ours: it decides instead of the sysctl."""
        running = world.pins.running(group.endpoint)
        if running.ours:
            raise Conflict(
                f"{group.endpoint} has this tool's program, which decides instead of the sysctl",
                hint="use --strategy migrate, or detach the program first",
            )
        return group

    def check(self, group: GroupState, world: World) -> None:
        """Whatever program there is, the kernel migrates by the sysctl."""

    def revive(self, group: GroupState, world: World) -> None:
        """There is nothing of ours in the group."""

    def number(self, group: GroupState, world: World) -> GroupState:
        """There are no generations."""
        return group

    def fill(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Nothing to register."""

    def share(self, group: GroupState, world: World, percent: float) -> None:
        """Never asked for: a canary needs the program."""

    def be_ready(self, state: ReloadState, group: GroupState, world: World) -> None:
        """They get connections anyway."""

    def is_switched(self, group: GroupState, world: World) -> bool:
        """There is no switch."""
        return False

    def switch(self, state: ReloadState, group: GroupState, world: World) -> float | None:
        """There is no switch."""
        return None

    def undo(self, state: ReloadState, group: GroupState, world: World) -> None:
        """The sysctl stays on until the new side has ended: what it holds moves back."""

    def forget(self, group: GroupState, world: World) -> None:
        """Nothing was made."""

    def finish(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Nothing to tidy."""
        return group
