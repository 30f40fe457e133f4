"""Our program decides for the group: generations, and one atomic switch between them."""

from __future__ import annotations

import dataclasses

from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.group.pins import Running
from reuseport_tool.reload import sides
from reuseport_tool.reload.state import GroupState, ReloadState
from reuseport_tool.reload.world import World


class ProgramWay:
    """See the protocol Way."""

    def prepare(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Attach the program if it is not attached. The listeners of other instances stay where they are."""
        known = world.pins.counters(group.endpoint) is not None
        cookies = group.old if known else (*group.old, *group.before)
        attached = world.pins.attach(group.endpoint, sides.members_of(state, world, cookies))
        if group.old_generation is not None:
            return group
        working = world.pins.cookies(group.endpoint, attached.working)
        return dataclasses.replace(
            group,
            old_generation=attached.working,
            counters_before=attached.counters,
            others=tuple(sorted(working - set(group.old) - set(group.new) & set(group.before))),
        )

    def check(self, group: GroupState, world: World) -> None:
        """Raises Conflict when the group runs another program than ours."""
        running = world.pins.running(group.endpoint)
        if running.known and running.program_id is None:
            raise Conflict(
                f"{group.endpoint}: our program ended with the last listener of the group",
                hint=f"when a server listens there: attach {group.endpoint}",
            )
        if running.known and not running.ours:
            raise Conflict(
                f"{group.endpoint}: {_described(running)}; the new server may have attached one of its own",
                hint="switch that off in the server, or use --strategy sysctl, which leaves the server's program alone",
            )

    def revive(self, group: GroupState, world: World) -> None:
        """The program of a group ends with its last listener. Another one in its place stays."""
        running = world.pins.running(group.endpoint)
        if running.known and running.program_id is None and world.pins.counters(group.endpoint) is not None:
            world.pins.attach_again(group.endpoint)

    def number(self, group: GroupState, world: World) -> GroupState:
        """The number above all that there are."""
        if group.new_generation is not None or not group.new:
            return group
        highest = max((*world.pins.generations(group.endpoint), world.pins.working(group.endpoint)))
        return dataclasses.replace(group, new_generation=highest + 1)

    def fill(self, state: ReloadState, group: GroupState, world: World) -> None:
        """Raises ToolError when the new listeners are gone."""
        if group.new_generation is None or self.is_switched(group, world):
            return
        if group.new_generation not in world.pins.generations(group.endpoint):
            world.pins.make(group.endpoint, group.new_generation)
        self._put(state, group, world, group.new_generation)
        if not world.pins.cookies(group.endpoint, group.new_generation):
            raise ToolError(f"the new listeners on {group.endpoint} are gone")

    def _put(self, state: ReloadState, group: GroupState, world: World, generation: int) -> None:
        """Register the new listeners that are not yet in a generation."""
        missing = set(group.new) - world.pins.cookies(group.endpoint, generation)
        world.pins.put(group.endpoint, generation, sides.members_of(state, world, missing))

    def share(self, group: GroupState, world: World, percent: float) -> None:
        """Exact also beside other instances: the new listeners are a generation of their own until the commit."""
        assert group.new_generation is not None
        world.pins.share(group.endpoint, group.new_generation, percent)

    def be_ready(self, state: ReloadState, group: GroupState, world: World) -> None:
        """A connection that is not accepted moves back."""

    def is_switched(self, group: GroupState, world: World) -> bool:
        """Whether the working generation is the new one or, beside other instances, has the new listeners only."""
        if group.new_generation is None or world.pins.counters(group.endpoint) is None:
            return False
        working = world.pins.working(group.endpoint)
        if not group.joins:
            return working == group.new_generation
        cookies = world.pins.cookies(group.endpoint, working)
        return bool(cookies.intersection(group.new)) and not cookies.intersection(group.old)

    def switch(self, state: ReloadState, group: GroupState, world: World) -> float | None:
        """Commit point: from here new connections reach the new listeners."""
        if group.new_generation is None or self.is_switched(group, world):
            return None
        if not group.joins:
            return world.pins.switch(group.endpoint, group.new_generation)
        assert group.old_generation is not None
        self._put(state, group, world, group.old_generation)
        world.pins.take_out(group.endpoint, group.old)
        return world.pins.switch(group.endpoint, group.old_generation)

    def undo(self, state: ReloadState, group: GroupState, world: World) -> None:
        """First the program is ours again, so that what the new listeners hold moves back as they close."""
        if group.old_generation is None or world.pins.counters(group.endpoint) is None:
            return
        running = world.pins.running(group.endpoint)
        if running.known and not running.ours:
            world.pins.attach_again(group.endpoint)
        if group.joins:
            world.pins.take_out(group.endpoint, group.new)
            missing = set(group.old) - world.pins.cookies(group.endpoint, group.old_generation)
            world.pins.put(group.endpoint, group.old_generation, sides.members_of(state, world, missing))
        world.pins.switch(group.endpoint, group.old_generation)

    def forget(self, group: GroupState, world: World) -> None:
        """Remove the new generation, and the program if it was not there before."""
        if world.pins.counters(group.endpoint) is None:
            return
        for generation in {group.new_generation, group.parked_generation} & {*world.pins.generations(group.endpoint)}:
            assert generation is not None
            world.pins.remove(group.endpoint, generation)
        if not group.attached_before:
            world.pins.detach(group.endpoint)

    def finish(self, state: ReloadState, group: GroupState, world: World) -> GroupState:
        """Late listeners join the working generation. A generation without listeners is removed."""
        if group.old_generation is None or world.pins.counters(group.endpoint) is None:
            return group
        working = world.pins.working(group.endpoint)
        if group.new:
            self._put(state, group, world, working)
        for generation in (group.old_generation, group.parked_generation, group.new_generation):
            if generation in (None, working) or generation not in world.pins.generations(group.endpoint):
                continue
            assert generation is not None
            if not world.pins.cookies(group.endpoint, generation):
                world.pins.remove(group.endpoint, generation)
        return group


def _described(running: Running) -> str:
    if not running.program_id:
        return "a classic BPF filter has taken the place of our program"
    return f"the program {running.program_id} has taken the place of ours"
