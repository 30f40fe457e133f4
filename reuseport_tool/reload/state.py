"""The state of a reload: one frozen record, which is what the journal holds.

A step takes the state and the world and returns the next state. Whatever must outlive the tool is saved before it is
done, so a run that fails, is interrupted or is killed is undone, or finished, from the same record.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from reuseport_tool import record_json
from reuseport_tool.errors import Conflict
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.processes import ProcessIdentity
from reuseport_tool.models import (
    CanaryStep,
    Counters,
    Endpoint,
    FlowMode,
    Leftovers,
    ListenerQueue,
    Migrated,
    Queues,
    Step,
    Strategy,
)
from reuseport_tool.record import record
from reuseport_tool.reload.plan import Plan

_HIGHEST_MARK = 1 << 62
ROLL_BACK = "roll back"
NO_WAY_BACK = ("stop", "leftovers", "prove")
"""The steps after the point of no return."""


class WayName(enum.StrEnum):
    """How a group is handed over: reload/ways/ has one module for each."""

    PROGRAM = "program"
    SYSCTL = "sysctl"
    DATAGRAMS = "datagrams"


@record
class GroupState:
    """One group of the reload.

    Attributes:
        old: cookies of the listeners to be replaced.
        before: cookies of all listeners that were there before the new side: these, and those of other processes.
        others: cookies of other instances' listeners in the working generation. Where there are some, the new
            listeners join that generation instead of taking its place.
        new: cookies of the new side's listeners, as far as they are known.
        dropped: the new side does not open this group (--drop).
        attached_before: whether our program ran before the reload began.
        flows: what a UDP group keeps together.
        recorded_before: whether the program recorded the flows of a UDP group before the reload began.
        counters_at_switch: of the program, just before a UDP group was switched.
        drops_before: datagrams that the old UDP sockets had dropped before the reload.
        cut, evicted: UDP flows that were alive when the old side was stopped (also connected sockets), or that the
            kernel forgot before; None where a killed run cannot tell.
        buffers: receive buffers of the old UDP sockets, in the order of `old`, before --run made them larger.
        parked: cookie of the tool's own socket in which datagrams wait while no server runs (--run).
        parked_generation: the generation of that one.
        given, not_given: datagrams that waited for a server (--run), and that it got from the tool, or did not get.
    """

    endpoint: Endpoint
    way: WayName
    old: tuple[int, ...]
    before: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    dropped: bool = False
    attached_before: bool = False
    old_generation: int | None = None
    new_generation: int | None = None
    counters_before: Counters | None = None
    flows: FlowMode = FlowMode.NONE
    recorded_before: bool = False
    counters_at_switch: Counters | None = None
    drops_before: int = 0
    cut: int = 0
    evicted: int | None = 0
    buffers: tuple[int, ...] = ()
    parked: int | None = None
    parked_generation: int | None = None
    given: int = 0
    not_given: int = 0

    @property
    def joins(self) -> bool:
        """Whether the new listeners join a generation that other instances serve, too."""
        return bool(self.others)


@record
class ReloadState:
    """Everything of a reload that cannot be found again by looking.

    Attributes:
        sequence: grows with each saving.
        pid: of the tool that saved it.
        endpoints: as they were asked for.
        begun_at: seconds since 1970.
        step: the one that is being done.
        owners: the old processes that are told to stop.
        old_side: those, all that descend from them, and all that hold what they hold.
        started: the process that we started.
        given: the process of --new-pid.
        new_side: all processes that were seen to descend from one of the two.
        resumed: another run began it.
        output: where the new server's output goes; None for our stderr.
        stop_asked: whether the old side has been told to stop.
        share_until: when the present share of the canary will have lasted long enough, in seconds since 1970.
        queues: the accept queues as they were seen so far.
        forward: there is no way back although the old side was not told to stop: it is gone.
    """

    sequence: int = 0
    pid: int
    endpoints: tuple[Endpoint, ...]
    begun_at: float
    step: str
    plan: Plan
    strategy: Strategy
    groups: tuple[GroupState, ...]
    owners: tuple[ProcessIdentity, ...]
    old_side: tuple[ProcessIdentity, ...]
    started: ProcessIdentity | None = None
    given: ProcessIdentity | None = None
    new_side: tuple[ProcessIdentity, ...] = ()
    resumed: bool = False
    output: str | None = None
    stop_asked: bool = False
    forward: bool = False
    migrate_req_before: str | None = None
    mib_before: TcpCounters
    queued: Queues
    switch_us: float | None = None
    stopped_at: float | None = None
    migrated: Migrated | None = None
    leftovers: Leftovers | None = None
    canary: tuple[CanaryStep, ...] = ()
    share_until: float | None = None
    queues: tuple[ListenerQueue, ...] = ()
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_past(self) -> bool:
        """Whether there is no way back."""
        return self.step in NO_WAY_BACK or self.stop_asked or self.forward

    @property
    def mark(self) -> int:
        """What marks the processes that this reload starts.

        It is lower than that of every reload before: a server that was started by one may run the tool, and without
        CAP_SYS_RESOURCE a limit can only be lowered.
        """
        return _HIGHEST_MARK - round(self.begun_at * 1e6)

    @property
    def name(self) -> str:
        """The groups in a message."""
        if len(self.groups) == 1:
            return str(self.groups[0].endpoint)
        return ", ".join(map(str, self.endpoints))

    @property
    def kept(self) -> tuple[GroupState, ...]:
        """The groups that the new side takes over."""
        return tuple(group for group in self.groups if not group.dropped)

    @property
    def old_cookies(self) -> frozenset[int]:
        return frozenset(cookie for group in self.groups for cookie in group.old)

    @property
    def new_cookies(self) -> frozenset[int]:
        return frozenset(cookie for group in self.groups for cookie in group.new)

    def with_group(self, changed: GroupState) -> ReloadState:
        """The state with another record of one group."""
        groups = (changed if group.endpoint == changed.endpoint else group for group in self.groups)
        return dataclasses.replace(self, groups=tuple(groups))

    def with_step(self, step: Step) -> ReloadState:
        """The state after one more step."""
        return dataclasses.replace(self, steps=(*self.steps, step))

    def with_groups(self, changed: Iterable[GroupState]) -> ReloadState:
        found = self
        for group in changed:
            found = found.with_group(group)
        return found


def encode(state: ReloadState) -> bytes:
    """The text of a journal."""
    return record_json.encode(state)


def decode(text: bytes) -> ReloadState:
    """Raises Conflict for the text of another version of the tool, or of another program."""
    try:
        return record_json.decode(ReloadState, text)
    except ValueError as error:
        raise Conflict(
            "the journal of the interrupted reload is of another version of this tool",
            hint="finish it with that version, or discard it: detach",
        ) from error
