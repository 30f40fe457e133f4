"""Single sockets: listed and ended."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

from reuseport_tool.record import record


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """One TCP or UDP socket."""

    protocol: str
    """`tcp` or `udp`."""
    state: str
    """The kernel's name of the TCP state: `established`, `syn_sent`, `syn_recv`, `fin_wait1`, `fin_wait2`, `time_wait`,
    `close`, `close_wait`, `last_ack`, `listen`, `closing` or `new_syn_recv`. UDP has `established` and
    `unconnected`."""
    local: str
    """For example `10.0.0.1:80`, `[::1]:80` or `0.0.0.0%eth0:53`."""
    remote: str | None
    """The same for the other end; null when there is none."""
    cookie: int
    """SO_COOKIE. Every socket has one."""
    pid: int | None
    """The topmost process that holds the socket. Null when none does: the connection was not accepted yet, its program
    closed it, or the process ended meanwhile."""
    command: str | None
    """The name of that process, or null."""
    uid: int
    """The owner. A half-open connection has its listener's; `time_wait` has 0."""
    inode: int | None
    """Null for a socket without a descriptor."""
    age_s: float | None
    """Time since the first SYN+ACK of a `new_syn_recv`. Null for all others: the kernel does not keep it."""
    idle_s: float | None
    """Time since data last came or went on a TCP connection, or since the handshake; null for all others."""
    receive_queue: int | None
    """Bytes; null for listeners, `new_syn_recv` and `time_wait`."""
    send_queue: int | None
    """Bytes; null for listeners, `new_syn_recv` and `time_wait`."""
    accept_queue: int | None
    """Connections that wait for accept(); null for all but listeners."""
    backlog: int | None
    """The limit of the accept queue; null for all but listeners."""
    generation: int | None
    """For a listener the generation that it is registered in. For a connection to an attached group the generation of
    its process's listeners, if they are all of one. Null otherwise, also when the process has closed its listeners."""


class SocketTable(Sequence[Socket]):
    """Sockets by column: to make and show a hundred thousand takes half of the time that as many records take.

    Attributes:
        columns: by the names of a Socket's fields, all of one length.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        assert columns.keys() == Socket.__dataclass_fields__.keys()
        self.columns = columns

    @classmethod
    def of(cls, entries: Iterable[Socket]) -> SocketTable:
        """The same sockets by column."""
        if isinstance(entries, SocketTable):
            return entries
        listed = list(entries)
        return cls({name: [getattr(entry, name) for entry in listed] for name in Socket.__dataclass_fields__})

    @classmethod
    def joined(cls, tables: Iterable[SocketTable]) -> SocketTable:
        """The sockets of several tables, one after another."""
        listed = list(tables)
        return cls(
            {
                name: list(chain.from_iterable(table.columns[name] for table in listed))
                for name in Socket.__dataclass_fields__
            }
        )

    def __len__(self) -> int:
        return len(self.columns["cookie"])

    @overload
    def __getitem__(self, index: int) -> Socket: ...

    @overload
    def __getitem__(self, index: slice) -> SocketTable: ...

    def __getitem__(self, index: int | slice) -> Socket | SocketTable:
        chosen: dict[str, Any] = {name: column[index] for name, column in self.columns.items()}
        return SocketTable(chosen) if isinstance(index, slice) else Socket(**chosen)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The fields of each socket."""
        names = tuple(self.columns)
        return (dict(zip(names, row, strict=True)) for row in zip(*self.columns.values(), strict=True))


@record
class Sockets:
    """What `sockets` found."""

    netns: str
    """The network namespace, as `net:[inode]`."""
    protocols: tuple[str, ...]
    """The protocols that were walked: `tcp`, `udp`."""
    exactly_once: bool | None
    """Whether the kernel promises, for all walked protocols, that a socket that lives through the walk is seen exactly
    once. Found in BTF by what Linux 6.16 (UDP) and 6.17 (TCP) added; null where that does not tell."""
    walked: int
    """Sockets that the walk saw."""
    walks: int = 1
    """How many walks were merged, by cookie: where the kernel may skip sockets it is walked until nothing new is seen,
    at most ten times."""
    walk_s: float
    """Time of the walk in the kernel, without /proc."""
    sockets: Sequence[Socket]
    """The sockets that match."""


@record
class Ending:
    """What became of a chosen socket."""

    socket: Socket
    """The socket as it was when it was chosen."""
    result: str
    """`would-end` (dry run), `ended`, `disconnected` (UDP: the program got the error, and the socket stays bound until
    the program closes it), `gone` (it had closed or changed meanwhile) or `refused` (the exit code is 1 then)."""
    detail: str = ""
    """Why the kernel refused."""


@record
class Destroy:
    """What `destroy` did."""

    netns: str
    """The network namespace, as `net:[inode]`."""
    engine: str
    """`bpf` (bpf_sock_destroy() in an iterator) or `netlink` (SOCK_DESTROY)."""
    dry_run: bool
    """True without `--yes`: nothing was changed."""
    exactly_once: bool | None
    """As in Sockets."""
    endings: tuple[Ending, ...]
    """One entry for each chosen socket."""
    listeners: int
    """Listeners that matched and were left alone, because `--state listen` was not given."""
    request_sockets: int
    """Half-open connections that matched. The tool never ends them."""
    time_wait: int
    """Sockets in TIME_WAIT that matched. The tool never ends them."""
