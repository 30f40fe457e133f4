"""The part of the step drain that is about UDP: the old sockets have read all, answered all, and no flow is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.models import FlowMode
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.world import World

_TELL_S = 5.0
_LOOK_S = 0.5  # at the flows: a walk over a map of a million takes a second


def groups(state: ReloadState) -> tuple[GroupState, ...]:
    """The UDP groups of a reload."""
    return tuple(group for group in state.groups if group.way is WayName.DATAGRAMS)


def become_quiet(state: ReloadState, world: World) -> ReloadState:
    """Wait until stopping the old side loses no datagram; at the end of --drain-timeout say what is cut."""
    waited = [group for group in groups(state) if not group.dropped]  # one that is given up is served to the end
    cookies = {cookie for group in waited for cookie in group.old}
    try:
        world.datagrams.watch(cookies)
    except (Unsupported, MissingCapability) as error:
        state = warn(state, world, f"whether the old server still answers cannot be seen: {error.message}")
    watches = [_Flows(group, state, world) for group in waited if group.flows is not FlowMode.NONE]
    quiet = _Quiet(cookies, state.plan.settle_s, world)
    begun_s = world.clock.now_s()
    timeout_s = state.plan.queue_drain_timeout_s

    def done() -> bool:
        left = sum(watch.look() for watch in watches)
        for watch in watches:
            watch.tell(timeout_s - (world.clock.now_s() - begun_s))
        return quiet.reached() and not left

    if not world.clock.wait(done, timeout_s):
        state = _cut(state, watches, timeout_s, world)
    return _written(state, watches, world)


def _cut(state: ReloadState, watches: list[_Flows], timeout_s: float, world: World) -> ReloadState:
    if any(watch.alive for watch in watches):
        left = ", ".join(f"{len(watch.alive)} flows on {watch.endpoint}" for watch in watches if watch.alive)
        return warn(state, world, f"{left} are cut: they are alive after {timeout_s:g} s (--drain-timeout)")
    text = f"the old server still reads or sends datagrams after {timeout_s:g} s (--drain-timeout), and is stopped"
    return warn(state, world, text)


def _written(state: ReloadState, watches: list[_Flows], world: World) -> ReloadState:
    for watch in watches:
        group = next(group for group in state.groups if group.endpoint == watch.endpoint)
        changed = dataclasses.replace(group, cut=len(watch.alive), evicted=watch.evicted)
        state = state.with_group(changed)
    return save(state, world)


class _Quiet:
    """Whether sockets have read all that they got, and have sent nothing for a while."""

    def __init__(self, cookies: Collection[int], settle_s: float, world: World) -> None:
        self._cookies = cookies
        self._settle_s = settle_s
        self._world = world
        self._since_s = world.clock.now_s()
        self._sent = -1

    def reached(self) -> bool:
        """A queue that is not empty, or another packet, begins the wait anew."""
        infos = self._world.datagrams.sockets()
        sent = sum(each.packets for each in self._world.datagrams.sent().values())
        unread = any(infos[cookie].receive_queue for cookie in self._cookies if cookie in infos)
        now_s = self._world.clock.now_s()
        if unread or sent != self._sent:
            self._since_s, self._sent = now_s, sent
        return now_s - self._since_s >= self._settle_s


class _Flows:
    """The flows of the old generation that are alive."""

    def __init__(self, group: GroupState, state: ReloadState, world: World) -> None:
        self.endpoint = group.endpoint
        self.alive: set[bytes] = set()
        self.evicted = 0
        self._generation = group.old_generation
        self._timeout_s = state.plan.flow_timeout_s
        self._world = world
        self._looked_s: float | None = None
        self._told_s = world.clock.now_s()
        self._seen: dict[bytes, float] = {}

    def look(self) -> int:
        """How many there are. One that was alive a moment ago, and is not recorded any more, was evicted."""
        now_s = self._world.clock.now_s()
        if self._looked_s is not None and now_s - self._looked_s < _LOOK_S:
            return len(self.alive)
        found = {
            flow.key: flow.idle_s
            for flow in self._world.datagrams.flows(self.endpoint)
            if flow.generation == self._generation
        }
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        gone = self.alive - found.keys()
        self.evicted += sum(self._seen[key] + passed_s < self._timeout_s for key in gone)
        self._looked_s, self._seen = now_s, found
        self.alive = {key for key, idle_s in found.items() if idle_s < self._timeout_s}
        return len(self.alive)

    def tell(self, left_s: float) -> None:
        """Say how many are left, now and then."""
        now_s = self._world.clock.now_s()
        if self.alive and now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self._world.tell.note(
                f"{self.endpoint}: {len(self.alive)} flows are left on the old server; "
                f"waiting up to {left_s:.0f} s more"
            )
