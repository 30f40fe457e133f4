"""What the program costs when a datagram chooses its socket, by what it keeps together and by the number of flows.

Each arm has a group of its own on 127.0.0.1. One thread, held on one CPU, sends with a raw socket, which takes any
source address: a million flows need no million sockets. Over loopback send(2) returns when the datagram is in the queue
of its socket, so the measured time has exactly one selection for each datagram. Which flow is next is random, so that
a large map is not in the CPU's cache. Before the first round one datagram of each flow has passed, and two with `quic`.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from reuseport_tool.bench.select import run_statistics, steady
from reuseport_tool.bench.spread import relative
from reuseport_tool.errors import ToolError
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import flow_map, netns, raw_udp, sockets
from reuseport_tool.models import BenchUdp, FlowMode, Policy, Spread, UdpArm

FLOWS = (1, 1_000, 100_000, 1_000_000)
STATISTICS_ROUNDS = 5
NO_PROGRAM = "-"

_FIRST_PORT = 9000
_SOCKETS = 4
_RECEIVE_BUFFER = 256 << 20
_SO_RCVBUFFORCE = 33
_BATCH = 8192  # datagrams between two emptyings of the sockets
_SOURCE = int.from_bytes(socket.inet_aton("127.1.0.0"))
_PORTS = 60_000
_ID_LENGTH = 8
_SHORT_HEADER = 0x40  # RFC 9000, section 17.3
_PROTECTED = bytes(16)
_HEADERS = struct.Struct("!BBHHHBBHI4sHHHH")
_LOOPBACK = socket.inet_aton("127.0.0.1")


@dataclass(kw_only=True)
class _Arm:
    """A group and what was measured of it, one element a round."""

    mode: FlowMode | None
    flows: int
    port: int
    members: Sequence[socket.socket]
    ours: Scratch | None
    wall_ns: list[float] = field(default_factory=list)
    ns_per_run: list[float] = field(default_factory=list)

    def packet(self, flow: int) -> bytes:
        """A datagram of a flow, with its IP header: the kernel fills in length, identification and checksum."""
        payload = bytes([_SHORT_HEADER]) + flow.to_bytes(_ID_LENGTH) + _PROTECTED
        source, port = _SOURCE + flow // _PORTS, 1024 + flow % _PORTS
        headers = _HEADERS.pack(
            *(0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0, source, _LOOPBACK),
            *(port, self.port, 8 + len(payload), 0),
        )
        return headers + payload


def bench(
    rounds: int, datagrams: int, flows: Sequence[int] = FLOWS, on_round: Callable[[], None] = lambda: None
) -> BenchUdp:
    """Measure no program, and each mode with each number of flows.

    Args:
        rounds: how often each arm is measured, at least 2, in a random order from a fixed seed.
        datagrams: for each arm and round.
        on_round: called after each round, also the STATISTICS_ROUNDS ones.

    Raises:
        MissingCapability, ProgramRejected, Unsupported: from the namespace and from loading.
        ToolError: datagrams got lost, or the program did not decide each of them once.
    """
    start = time.perf_counter()
    order = random.Random(0)
    with ExitStack() as stack:
        stack.enter_context(netns.throw_away())
        run_statistics().close()  # fail now rather than after the rounds
        arms = _arms(stack, flows)
        sender = stack.enter_context(raw_udp.opened(socket.AF_INET))
        sender.connect(("127.0.0.1", 0))
        stack.enter_context(steady())
        for arm in arms:
            for _ in range(2 if arm.mode is FlowMode.QUIC else 1):
                _send(sender, arm, range(arm.flows))
        for number in range(rounds + STATISTICS_ROUNDS):
            if number == rounds:
                stack.enter_context(run_statistics())
            for arm in order.sample(arms, len(arms)):
                _measure(sender, arm, order.choices(range(arm.flows), k=datagrams), with_statistics=number >= rounds)
            on_round()
    return BenchUdp(
        kernel=os.uname().release,
        rounds=rounds,
        datagrams_per_round=datagrams,
        statistics_rounds=STATISTICS_ROUNDS,
        arms=_summaries(arms),
        duration_s=round(time.perf_counter() - start, 2),
    )


def _arms(stack: ExitStack, flows: Sequence[int]) -> list[_Arm]:
    """No program and `none`, which know of no flows, with the least number of them; the others with each."""
    cells: list[tuple[FlowMode | None, int]] = [(None, min(flows)), (FlowMode.NONE, min(flows))]
    cells += [(mode, number) for mode in FlowMode if mode is not FlowMode.NONE for number in flows]
    return [_arm(stack, _FIRST_PORT + at, mode, number) for at, (mode, number) in enumerate(cells)]


def _arm(stack: ExitStack, port: int, mode: FlowMode | None, flows: int) -> _Arm:
    members = [stack.enter_context(_member(port)) for _ in range(_SOCKETS)]
    ours = None
    if mode is not None:
        ours = Scratch(stack, Policy.HASH, FlowChoice(mode=mode, entries=max(flow_map.ENTRIES, 2 * flows)))
        ours.add_generation(1, members)
        if mode is FlowMode.QUIC:
            ours.give_id_length(1, _ID_LENGTH)
        sockets.attach_program(members[0].fileno(), ours.program)
    return _Arm(mode=mode, flows=flows, port=port, members=members, ours=ours)


def _member(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    made.bind(("127.0.0.1", port))
    return made


def _send(sender: socket.socket, arm: _Arm, flows: Sequence[int]) -> int:
    """Send a datagram of each of these flows. Returns the time that it took, without making and reading them, in ns."""
    took_ns = 0
    for at in range(0, len(flows), _BATCH):
        packets = [arm.packet(flow) for flow in flows[at : at + _BATCH]]
        begun_ns = time.perf_counter_ns()
        for packet in packets:
            sender.send(packet)
        took_ns += time.perf_counter_ns() - begun_ns
        arrived = sum(map(_read_all, arm.members))
        if arrived != len(packets):
            raise ToolError(f"{len(packets) - arrived} of {len(packets)} datagrams over loopback did not arrive")
    return took_ns


def _read_all(member: socket.socket) -> int:
    count, buffer = 0, bytearray(64)
    with contextlib.suppress(BlockingIOError):
        while True:
            member.recv_into(buffer)
            count += 1
    return count


def _measure(sender: socket.socket, arm: _Arm, flows: Sequence[int], *, with_statistics: bool) -> None:
    if not with_statistics:
        arm.wall_ns.append(_send(sender, arm, flows) / len(flows))
        return
    if arm.ours is None:
        return
    before, kept = arm.ours.program.info(), _kept(arm.ours)
    _send(sender, arm, flows)
    after = arm.ours.program.info()
    runs = after.run_count - before.run_count
    if runs != len(flows) or (arm.mode is not FlowMode.NONE and _kept(arm.ours) - kept != runs):
        raise ToolError(f"the program ran {runs} times for {len(flows)} datagrams of known flows, or did not keep them")
    arm.ns_per_run.append((after.run_time_ns - before.run_time_ns) / runs)


def _kept(ours: Scratch) -> int:
    counters = ours.flow_counters()
    return counters.kept if counters is not None else 0


def _summaries(arms: Iterable[_Arm]) -> tuple[UdpArm, ...]:
    by_mode = {arm.mode: arm for arm in arms}
    none, base = by_mode[FlowMode.NONE], by_mode[None]
    return tuple(
        UdpArm(
            program=arm.mode or NO_PROGRAM,
            flows=arm.flows,
            datagrams_per_s=round(1e9 / statistics.median(arm.wall_ns), 1),
            relative=relative(base.wall_ns, arm.wall_ns, 4),
            ns_per_run=round(statistics.median(arm.ns_per_run), 1) if arm.ns_per_run else None,
            ns_relative=round(_ratio(arm, none).median, 3) if arm.ns_per_run else None,
        )
        for arm in arms
    )


def _ratio(arm: _Arm, none: _Arm) -> Spread:
    return relative(arm.ns_per_run, none.ns_per_run, 3)
