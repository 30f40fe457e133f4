"""What a check has proved."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Way(enum.StrEnum):
    """The ways to reload that `check hot-reload` compares; see check/trial.py."""

    CLOSE = "close"
    ACCEPT_DRAIN = "accept-drain"
    FD_PASSING = "fd-passing"
    BPF_DRAIN = "bpf-drain"
    SYSCTL = "sysctl"
    BPF_MIGRATE = "bpf-migrate"


class ConnectionState(enum.StrEnum):
    """What a connection that nobody has accepted yet can be when its listener closes.

    ESTABLISHED and SYN_RECV (TCP Fast Open) wait in the accept queue. NEW_SYN_RECV waits for the
    final ACK, and the kernel notices that the listener is gone when that comes, or when the timer of
    the SYN+ACK fires.
    """

    ESTABLISHED = "established"
    SYN_RECV = "syn_recv"
    NEW_SYN_RECV_ACK = "new_syn_recv_ack"
    NEW_SYN_RECV_TIMER = "new_syn_recv_timer"

    @property
    def half_open(self) -> bool:
        return self in (ConnectionState.NEW_SYN_RECV_ACK, ConnectionState.NEW_SYN_RECV_TIMER)


@dataclass(frozen=True)
class Case:
    """One cell of `check hot-reload`: `state` is a ConnectionState, `strategy` a Way.

    `duration_s` is from the start of the reload to the last client's answer or reset. `woken` says
    whether a server asleep in epoll_wait was woken by what reached it; None where nothing was to wake
    it.
    """

    state: str
    family: str
    strategy: str
    connections: int
    survived: int
    expected: str
    woken: bool | None
    duration_s: float
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Move:
    """Where the request that was queued on one listener was answered ("-": nowhere).

    `via` are the queues that it was in between: each but the last one was closed in its turn.
    """

    strategy: str
    queued_on: str
    via: tuple[str, ...]
    answered_by: str


@dataclass(frozen=True)
class Redistribution:
    """Listeners A, B (old) and C, D (new) hold one request each; A, then B is closed."""

    moves: tuple[Move, ...]
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class CheckHotReload:
    kernel: str
    ok: bool
    cases: tuple[Case, ...]
    redistribution: Redistribution
    duration_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FramingCase:
    """One case of `check rpc-framing`. A stall is a frame that the reader had to be given by a deadline."""

    name: str
    family: str
    frames: int
    wakeups: int
    stalls: int
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class CheckRpcFraming:
    kernel: str
    engine: str
    ok: bool
    cases: tuple[FramingCase, ...]
    duration_s: float
