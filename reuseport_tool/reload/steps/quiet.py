"""The part of the step drain that is about UDP: the old sockets have read all, answered all, and no flow is left."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import FlowMode
from reuseport_tool.reload import sides
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.world import World

_TELL_S = 5.0
_PARKED = 5  # times --settle: how long nobody is served for the old server's sake
_LOOK_S = 0.5  # at the flows: a walk over a map of a million takes a second
_SEEN_S = 1.1  # how much older the word of a flow can be than its last datagram: it is written once a second


def groups(state: ReloadState) -> tuple[GroupState, ...]:
    """The UDP groups of a reload."""
    return tuple(group for group in state.groups if group.way is WayName.DATAGRAMS)


def _ends(group: GroupState, state: ReloadState) -> bool:
    """Whether the old sockets get nothing any more that only they get: one that is given up is served to the end.

    With --run the server may go on with the sockets that it has.
    """
    return not group.dropped and not group.endpoint.is_shared and bool(group.new or state.plan.run is None)


def become_quiet(state: ReloadState, world: World) -> ReloadState:
    """Wait until stopping the old side loses no datagram; at the end of --drain-timeout say what is cut."""
    waited = [group for group in groups(state) if _ends(group, state)]
    cookies = {cookie for group in waited for cookie in group.old}
    state = _watch(cookies, state, world)
    watches = [_Flows(group, state, world) for group in waited if group.flows is not FlowMode.NONE]
    quiet = _Quiet(cookies, state.old_side, state, world)
    begun_s = world.clock.now_s()
    timeout_s = state.plan.queue_drain_timeout_s

    def done() -> bool:
        left = sum([watch.look() for watch in watches])
        for watch in watches:
            watch.tell(timeout_s - (world.clock.now_s() - begun_s))
        return quiet.reached() and not left

    if not world.clock.wait(done, timeout_s):
        state = _cut(state, watches, timeout_s, world)
    return _written(state, watches, world)


def answer_rest(cookies: Collection[int], state: ReloadState, world: World) -> ReloadState:
    """Before --run's command: wait until the old server has answered what it got before its datagrams were parked."""
    state = _watch(cookies, state, world)
    timeout_s = _PARKED * state.plan.settle_s
    if not world.clock.wait(_Quiet(cookies, state.old_side, state, world).reached, timeout_s):
        text = f"the old server still sends datagrams after {timeout_s:g} s: what it has not answered may be lost"
        state = warn(state, world, text)
    return state


def _watch(cookies: Collection[int], state: ReloadState, world: World) -> ReloadState:
    try:
        world.datagrams.watch(cookies)
    except (Unsupported, MissingCapability) as error:
        state = warn(state, world, f"cannot see whether the old server still answers: {error.message}")
    return state


def may_have_asked(state: ReloadState) -> bool:
    """Whether clients' datagrams may have gone to the new side."""
    return bool(state.plan.canary or any(group.counters_at_switch for group in groups(state)))


def answer_all(state: ReloadState, world: World) -> None:
    """In a roll-back: wait, not for long, until the new side has answered what it got while it had the datagrams."""
    cookies = {cookie for group in groups(state) for cookie in group.new}
    if not cookies or not may_have_asked(state):
        return
    with contextlib.suppress(Unsupported, MissingCapability):
        world.datagrams.watch(cookies)
    world.datagrams.barrier()
    quiet = _Quiet(cookies, state.new_side, state, world)
    world.clock.wait(quiet.reached, state.plan.health_timeout_s)


def _cut(state: ReloadState, watches: list[_Flows], timeout_s: float, world: World) -> ReloadState:
    if any(watch.left for watch in watches):
        left = ", ".join(f"{watch.shown()} on {watch.endpoint}" for watch in watches if watch.left)
        return warn(state, world, f"{left} are cut: they are still alive after {timeout_s:g} s (--drain-timeout)")
    text = f"the old server still reads or sends datagrams after {timeout_s:g} s (--drain-timeout), and is stopped"
    return warn(state, world, text)


def _written(state: ReloadState, watches: list[_Flows], world: World) -> ReloadState:
    for watch in watches:
        group = next(group for group in state.groups if group.endpoint == watch.endpoint)
        if group.flows is FlowMode.QUIC and world.datagrams.is_crowded(group.endpoint):
            text = "its maps are more than half full: a connection whose ID was forgotten is lost if its client moves"
            state = warn(state, world, f"{group.endpoint}: {text}")
        if watch.closed:
            text = f"{len(watch.closed)} flows on {group.endpoint} are cut: the old server closed their sockets"
            state = warn(state, world, text)
        changed = dataclasses.replace(group, cut=watch.left + len(watch.closed), evicted=watch.forgotten)
        state = state.with_group(changed)
    return save(state, world)


class _Quiet:
    """Whether sockets have read all that they got, and have sent nothing for a while.

    Time in which their processes cannot run does not count: they may have read what they have not answered. Of sockets
    that no server has any more (--run), nothing is awaited: what is in them comes later, in the step stop.
    """

    def __init__(
        self, cookies: Collection[int], side: Collection[ProcessIdentity], state: ReloadState, world: World
    ) -> None:
        self._cookies = cookies
        self._side = side
        self._state = state
        self._world = world
        self._quiet_s = 0.0
        self._looked_s = world.clock.now_s()
        self._sent = -1

    def reached(self) -> bool:
        """A queue that is not empty, or another packet, begins the time anew."""
        awaited = self._awaited()
        if not awaited:
            return True
        infos = self._world.datagrams.sockets()
        sent = sum(each.packets for each in self._world.datagrams.sent().values())
        held_up = self._world.processes.are_held_up(self._side)
        now_s = self._world.clock.now_s()
        unread = any(cookie in infos and infos[cookie].receive_queue for cookie in awaited)
        if unread or sent != self._sent:
            self._quiet_s, self._sent = 0.0, sent
        elif not held_up:
            self._quiet_s += now_s - self._looked_s
        self._looked_s = now_s
        return self._quiet_s >= self._state.plan.settle_s

    def _awaited(self) -> Collection[int]:
        if self._state.plan.run is None:
            return self._cookies
        return (sides.held_by_others(self._state, self._world) | self._state.new_cookies).intersection(self._cookies)


class _Flows:
    """The flows of the old generation that are alive, and the sockets that the old side connected to one client.

    The program does not see what reaches a connected socket. The server closes it when its connection has ended.

    Attributes:
        alive: flows by their keys.
        evicted: the slots of flows by their keys.
        closed: flows that were alive when the old server closed their socket.
        connected: cookies.
    """

    def __init__(self, group: GroupState, state: ReloadState, world: World) -> None:
        self.endpoint = group.endpoint
        self.alive: set[bytes] = set()
        self.evicted: dict[bytes, int] = {}
        self.closed: set[bytes] = set()
        self.connected: set[int] = set()
        self._held: dict[int, bool] = {}
        self._state = state
        self._mode = group.flows
        self._generation = group.old_generation
        self._timeout_s = state.plan.flow_timeout_s + _SEEN_S
        self._world = world
        self._looked_s: float | None = None
        self._told_s = world.clock.now_s()
        self._seen: dict[bytes, RawFlow] = {}
        kept = world.datagrams.kept_flows(group.endpoint)
        self._seen_at_switch = kept is not None
        if kept is not None:
            self._looked_s = kept.seen_s
            self._note({flow.key: flow for flow in kept.flows if flow.is_of(self._generation)})

    def look(self) -> int:
        """How many there are. One that was alive a moment ago, and is not recorded any more, was evicted.

        A QUIC connection is recorded again by its ID, unless that was evicted as well: then another worker may get it.
        And an address that one has left may be that of a newer one: its flow is another generation's then, and no
        eviction. Without IDs, only what was evicted is recorded anew.
        """
        now_s = self._world.clock.now_s()
        if self._looked_s is not None and now_s - self._looked_s < _LOOK_S:
            return self.left
        found, taken = self._recorded()
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        gone = {key for key in self.alive - found.keys() if self._seen[key].idle_s + passed_s < self._timeout_s}
        self._note_closed(gone, found)
        self.evicted |= {key: self._seen[key].slot for key in (gone - self.closed - taken) | self._dealt_anew(found)}
        self.evicted = {key: slot for key, slot in self.evicted.items() if not _is_back(found.get(key), slot)}
        self._looked_s = now_s
        self._note(found)
        self.connected = self._connected()
        return self.left

    def _note_closed(self, gone: set[bytes], found: dict[bytes, RawFlow]) -> None:
        """Whoever lost its socket is recorded anew, or has not come back yet."""
        assert self._generation is not None
        open_slots = self._world.datagrams.open_slots(self.endpoint, self._generation)
        left = {flow.key for flow in found.values() if flow.slot not in open_slots and flow.idle_s < self._timeout_s}
        self.closed |= left | {key for key in gone if self._seen[key].slot not in open_slots}

    def _dealt_anew(self, found: dict[bytes, RawFlow]) -> set[bytes]:
        """Flows that another worker has by now: forgotten and recorded anew since the last look.

        While the kernel forgets none it is another connection, with the address of one that has left.
        """
        both = self.alive & found.keys()
        changed = {key for key in both if found[key].slot != self._seen[key].slot}
        return changed if changed and self._world.datagrams.is_crowded(self.endpoint) else set()

    def _note(self, found: dict[bytes, RawFlow]) -> None:
        self._seen = found
        self.alive = {flow.key for flow in found.values() if flow.idle_s < self._timeout_s} - self.closed

    @property
    def forgotten(self) -> int | None:
        """How many the kernel forgot since the switch; None where another run saw the flows then."""
        return len(self.evicted) if self._seen_at_switch else None

    @property
    def left(self) -> int:
        """Of both."""
        return len(self.alive) + len(self.connected)

    def shown(self) -> str:
        """How many of each."""
        both = ((len(self.alive), "flows"), (len(self.connected), "connected sockets"))
        return " and ".join(f"{count} {what}" for count, what in both if count)

    def _recorded(self) -> tuple[dict[bytes, RawFlow], set[bytes]]:
        """The old generation's flows, and of QUIC those that are another generation's by now."""
        found: dict[bytes, RawFlow] = {}
        taken: set[bytes] = set()
        for flow in self._world.datagrams.flows(self.endpoint):
            if flow.is_of(self._generation):
                found[flow.key] = flow
            elif self._mode is FlowMode.QUIC and flow.key in self.alive:
                taken.add(flow.key)
        return found, taken

    def _connected(self) -> set[int]:
        found = self._world.datagrams.connected(self.endpoint)
        unknown = [each for each in found if each.cookie not in self._held]
        if unknown:
            tree = self._world.processes.tree()
            side = tree.below({process.pid for process in tree.running(self._state.old_side)})
            for member in self._world.listeners.with_holders(unknown, side):
                self._held[member.cookie] = bool(member.holders)
        return {each.cookie for each in found if self._held.get(each.cookie)}

    def tell(self, left_s: float) -> None:
        """Say how many are left, now and then."""
        now_s = self._world.clock.now_s()
        if self.left and now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self._world.tell.note(
                f"{self.endpoint}: {self.shown()} are left on the old server; waiting up to {left_s:.0f} s more"
            )


def _is_back(found: RawFlow | None, slot: int) -> bool:
    """Whether a flow that was evicted belongs to its old socket again."""
    return found is not None and found.slot == slot
