"""Sockets, and what became of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class SocketState(enum.StrEnum):
    """The states of include/net/tcp_states.h from 1 on, and what CLOSE means for UDP."""

    ESTABLISHED = "established"
    SYN_SENT = "syn_sent"
    SYN_RECV = "syn_recv"
    FIN_WAIT1 = "fin_wait1"
    FIN_WAIT2 = "fin_wait2"
    TIME_WAIT = "time_wait"
    CLOSE = "close"
    CLOSE_WAIT = "close_wait"
    LAST_ACK = "last_ack"
    LISTEN = "listen"
    CLOSING = "closing"
    NEW_SYN_RECV = "new_syn_recv"
    UNCONNECTED = "unconnected"


@dataclass(frozen=True, slots=True)
class Socket:
    """One TCP or UDP socket.

    Attributes:
        state: a SocketState.
        local, remote: `ADDR:PORT` or `[ADDR6]:PORT`; `remote` is None for an unconnected one.
        pid, command: the topmost process that holds it; None where none does (not accepted yet,
            TIME_WAIT, closed by its program), or where it ended meanwhile.
        inode: None without a descriptor.
        age_s: of a request socket, from its first SYN+ACK; the kernel keeps no time of birth of others.
        idle_s: of a TCP connection, since data last came or went, or since the handshake; None for others.
        receive_queue, send_queue: bytes; None for a listener and for sockets without queues.
        accept_queue, backlog: connections; None for all but listeners.
        generation: of the attached group that it belongs to; None where that cannot be told.
    """

    protocol: str
    state: str
    local: str
    remote: str | None
    cookie: int
    pid: int | None
    command: str | None
    uid: int
    inode: int | None
    age_s: float | None
    idle_s: float | None
    receive_queue: int | None
    send_queue: int | None
    accept_queue: int | None
    backlog: int | None
    generation: int | None


@dataclass(frozen=True)
class Sockets:
    """Those of the `walked` sockets that match.

    `exactly_once` says whether the kernel promises, for all walked protocols, that a socket that lives through
    the walk is seen once; None where it does not tell. `walk_s` is the time of the walk in the kernel.
    """

    netns: str
    protocols: tuple[str, ...]
    exactly_once: bool | None
    walked: int
    walk_s: float
    sockets: tuple[Socket, ...]


@dataclass(frozen=True)
class Ending:
    """What became of a chosen socket.

    `result` is would-end (dry run), ended, disconnected (UDP: its program got the error, and it stays bound
    until that closes it), gone (it had closed or changed meanwhile) or refused.
    """

    socket: Socket
    result: str
    detail: str = ""


@dataclass(frozen=True)
class Destroy:
    """`engine` is bpf or netlink. `listeners`, `request_sockets` and `time_wait` count those that matched
    and were left alone."""

    netns: str
    engine: str
    dry_run: bool
    exactly_once: bool | None
    endings: tuple[Ending, ...]
    listeners: int
    request_sockets: int
    time_wait: int
