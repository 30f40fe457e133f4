"""The checks: what came out, and what was expected."""

from __future__ import annotations

import enum

from reuseport_tool.record import record


class CheckedWay(enum.StrEnum):
    """The ways to reload that `check hot-reload` compares."""

    CLOSE = "close"
    ACCEPT_DRAIN = "accept-drain"
    FD_PASSING = "fd-passing"
    BPF_DRAIN = "bpf-drain"
    SYSCTL = "sysctl"
    BPF_MIGRATE = "bpf-migrate"


class ConnectionState(enum.StrEnum):
    """The state of a connection that nobody has accepted yet when its listener closes.

    ESTABLISHED and SYN_RECV (TCP Fast Open) wait in the accept queue. NEW_SYN_RECV waits for the final ACK, and the
    kernel notices that the listener is gone when the ACK comes, or when the timer of the SYN+ACK fires.
    """

    ESTABLISHED = "established"
    SYN_RECV = "syn_recv"
    NEW_SYN_RECV_ACK = "new_syn_recv_ack"
    NEW_SYN_RECV_TIMER = "new_syn_recv_timer"

    @property
    def half_open(self) -> bool:
        return self in (ConnectionState.NEW_SYN_RECV_ACK, ConnectionState.NEW_SYN_RECV_TIMER)


@record
class Case:
    """One cell of `check hot-reload`."""

    state: str
    """`established`, `syn_recv`, `new_syn_recv_ack` or `new_syn_recv_timer`."""
    family: str
    """`ipv4` or `ipv6`."""
    strategy: str
    """`close`, `accept-drain`, `fd-passing`, `bpf-drain`, `sysctl` or `bpf-migrate`."""
    connections: int
    """Connections that waited."""
    survived: int
    """Connections that the new listener answered."""
    expected: str
    """`survive` or `lose`."""
    woken: bool | None
    """Whether a server asleep in epoll_wait was woken; null when there was nothing to wake it."""
    duration_s: float
    """From the start of the reload to the last client's answer or reset."""
    ok: bool
    """The case came out as expected."""
    detail: str = ""
    """What was not as expected."""


@record
class Move:
    """The way of the request that was queued on one listener."""

    strategy: str
    """As in Case."""
    queued_on: str
    """The listener that it was queued on."""
    via: tuple[str, ...]
    """The queues that it was in between. Each of them but the last one was closed in its turn."""
    answered_by: str
    """The listener that answered it; `-` when nobody did."""


@record
class Redistribution:
    """Listeners A, B (old) and C, D (new) hold one request each; A is closed, then B."""

    moves: tuple[Move, ...]
    """One entry for each request and strategy."""
    ok: bool
    """Everything came out as expected."""
    detail: str = ""
    """What was not as expected."""


@record
class CheckHotReload:
    """What `check hot-reload` found."""

    kernel: str
    """The kernel's release."""
    ok: bool
    """Every case came out as expected."""
    cases: tuple[Case, ...]
    """One entry for each state, family and strategy."""
    redistribution: Redistribution
    """Where the requests of two old listeners went."""
    duration_s: float
    """Duration of everything."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""


@record
class FramingCase:
    """One case of `check rpc-framing`."""

    name: str
    """What was sent, and how."""
    family: str
    """`ipv4` or `ipv6`."""
    frames: int
    """Whole frames that were sent."""
    wakeups: int
    """Wake-ups of an edge-triggered reader."""
    stalls: int
    """Frames that were complete without a wake-up of the reader."""
    ok: bool
    """The case came out as expected."""
    detail: str = ""
    """What was not as expected."""


@record
class CheckRpcFraming:
    """What `check rpc-framing` found."""

    kernel: str
    """The kernel's release."""
    engine: str
    """`native` or `solo`."""
    ok: bool
    """Every case came out as expected."""
    cases: tuple[FramingCase, ...]
    """One entry for each case and family."""
    duration_s: float
    """Duration of everything."""


@record
class UdpCase:
    """One case of `check udp-reload`."""

    name: str
    """The kind of server, or what goes wrong."""
    family: str
    """`ipv4` or `ipv6`."""
    flows: str
    """`plain` (a restart without the tool), the value of `--flows`, or `-` where it was not given."""
    expected: str
    """`survive`, `lose`, `reported` (exit 1), `refused` (exit 2 or 7) or `rolled back` (exit 8)."""
    datagrams: int
    """Datagrams that the clients sent."""
    lost: int
    """Datagrams that nobody answered."""
    ok: bool
    """The case came out as expected."""
    duration_s: float
    """Duration of the case."""
    detail: str = ""
    """What was not as expected."""


@record
class CheckUdpReload:
    """What `check udp-reload` found."""

    kernel: str
    """The kernel's release."""
    ok: bool
    """Every case came out as expected."""
    cases: tuple[UdpCase, ...]
    """The cases."""
    duration_s: float
    """Duration of the check."""
