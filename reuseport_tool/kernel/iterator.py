"""BPF iterators over the sockets of reuseport groups: what sock_diag does not tell of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ProgramRejected, Unsupported
from reuseport_tool.kernel import btf, diag
from reuseport_tool.kernel.abi import LISTENER_RECORD, NOT_IN_SOCKS, UDP_RECORD, ListenerRecord, TcpState, UdpRecord
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.program import Source, bpf_dir
from reuseport_tool.kernel.socket_iterator import tuple_offsets
from reuseport_tool.models import Protocol
from reuseport_tool.record import record

_LISTEN, _NEW_SYN_RECV = int(TcpState.LISTEN), int(TcpState.NEW_SYN_RECV)
_MEMBERSHIP_OFFSETS = {
    "OFF_REUSEPORT_CB": "sock.sk_reuseport_cb",
    "OFF_PROG": "sock_reuseport.prog",
    "OFF_NUM_SOCKS": "sock_reuseport.num_socks",
    "OFF_AUX": "bpf_prog.aux",
    "OFF_ID": "bpf_prog_aux.id",
}
_ORDER_OFFSETS = {"OFF_SOCKS": "sock_reuseport.socks"}
_TCP_OFFSETS = {
    "OFF_STATE": "sock_common.skc_state",
    "OFF_COOKIE": "sock_common.skc_cookie",
    "OFF_LISTENER": "sock_common.skc_listener",
    "OFF_ACCEPT_QUEUE": "sock.sk_ack_backlog",
    "OFF_BACKLOG": "sock.sk_max_ack_backlog",
    "OFF_HALF_OPEN": "inet_connection_sock.icsk_accept_queue.qlen",
}
_UDP_OFFSETS = {
    "OFF_RMEM_ALLOC": "sock.sk_backlog.rmem_alloc",
    "OFF_WMEM_ALLOC": "sock.sk_wmem_alloc",
    "OFF_FORWARD_DEFICIT": "udp_sock.forward_deficit",
    "OFF_DROPS": "sock.sk_drops",
}
_DROP_COUNTERS = {
    "OFF_DROP_COUNTERS": "sock.sk_drop_counters",
    "OFF_DROPS0": "numa_drop_counters.drops0",
    "OFF_DROPS1": "numa_drop_counters.drops1",
}


@record
class MemberInfo:
    """What the kernel keeps of a socket's membership in a reuseport group.

    Attributes:
        cookie: 0 when nobody has asked for it yet (a sock_diag dump asks for all).
        group: the address of the group's struct sock_reuseport, 0 for a socket without SO_REUSEPORT.
        program_id: of the group's program; 0 for a classic BPF filter, None without a program.
        index: in the group's socks[], by which the kernel's own choice counts; None when unknown or not asked for.
        group_size: sockets in socks[] that are not closed.
    """

    cookie: int
    group: int
    program_id: int | None
    index: int | None
    group_size: int


@record
class ListenerInfo(MemberInfo):
    """A TCP listener. `accept_queue`, `backlog` and `half_open` are connections."""

    accept_queue: int
    backlog: int
    half_open: int


@record
class UdpInfo(MemberInfo):
    """A bound UDP socket. Queues in bytes; `drops` are the datagrams that this socket lost (sk_drops).

    `local`, `remote` are addresses in network order: 4 bytes, or 16 for IPv6.
    """

    is_connected: bool
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    receive_queue: int
    send_queue: int
    drops: int


@dataclass(frozen=True)
class Snapshot:
    """One walk. `requests` maps a listener's cookie to the request sockets that point at it, also
    when that listener has been closed since."""

    listeners: dict[int, ListenerInfo]
    requests: dict[int, int]


def source(*, ordered: bool = True) -> Source:
    """The program of TcpListeners. To look for the index takes the verifier longer than all the rest."""
    offsets = btf.offsets({**_TCP_OFFSETS, **_membership(ordered)})
    return Source(path=bpf_dir() / "sockets" / "tcp_listeners.c", defines=offsets)


def _membership(ordered: bool) -> Mapping[str, str]:
    return {**_MEMBERSHIP_OFFSETS, **_ORDER_OFFSETS} if ordered else _MEMBERSHIP_OFFSETS


def udp_source(*, asks: bool = True, ordered: bool = True) -> Source:
    """The program of UdpListeners; one that asks for cookies needs Linux 5.12."""
    offsets = {**tuple_offsets(), **btf.offsets({**_UDP_OFFSETS, **_membership(ordered)})}
    with suppress(Unsupported):
        offsets |= btf.offsets(_DROP_COUNTERS)
    if not asks:
        offsets["OFF_COOKIE"] = btf.offset("sock_common", "skc_cookie")
    return Source(path=bpf_dir() / "sockets" / "udp_members.c", defines=offsets)


class TcpListeners(Closing):
    """The loaded iterator. Each read() walks the sockets of the calling thread's network namespace.

    Args:
        ordered: whether the index of each listener is asked for.

    Raises:
        Unsupported: no iterators (Linux 5.9) or no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._iterator = BpfIterator(Protocol.TCP, source(ordered=ordered))

    def close(self) -> None:
        """Unload it."""
        self._iterator.close()

    def listeners(self, wanted: Collection[int] | None = None) -> Mapping[int, MemberInfo]:
        """The listeners by cookie: all, or at least those that are wanted and listen.

        The walk ends with the last wanted one. Behind the listeners the kernel visits each bucket of its table of
        connections (net/ipv4/tcp_ipv4.c, tcp_seek_last_pos()), which takes milliseconds even if all are empty.
        """
        records = self._records(wanted)
        return _Infos({record.cookie: record for record in records if record.state == _LISTEN}, _tcp_info)

    def read(self, wanted: Collection[int] | None = None) -> Snapshot:
        """The listeners as listeners(), and, unless the walk ends before them, how many request sockets each has."""
        listeners: dict[int, ListenerInfo] = {}
        requests: dict[int, int] = {}
        for found in self._records(wanted):
            if found.state == _LISTEN:
                listeners[found.cookie] = _tcp_info(found)
            elif found.state == _NEW_SYN_RECV:
                requests[found.cookie] = requests.get(found.cookie, 0) + 1
        return Snapshot(listeners, requests)

    def _records(self, wanted: Collection[int] | None) -> Iterator[ListenerRecord]:
        if wanted is not None:
            return self._records_until(set(wanted))
        return map(ListenerRecord._make, LISTENER_RECORD.iter_unpack(self._iterator.read()))

    def _records_until(self, wanted: set[int]) -> Iterator[ListenerRecord]:
        with self._iterator.walk() as read:
            while wanted and (part := read(len(wanted) * LISTENER_RECORD.size)):
                for found in map(ListenerRecord._make, LISTENER_RECORD.iter_unpack(part)):
                    wanted.discard(found.cookie)
                    yield found


class _Infos(Mapping[int, MemberInfo]):
    """What is known of many sockets, made when it is asked for: mostly that is of the few of one group."""

    def __init__(self, records: Mapping[int, ListenerRecord], make: Callable[[ListenerRecord], MemberInfo]) -> None:
        self._records = records
        self._make = make

    def __getitem__(self, cookie: int) -> MemberInfo:
        return self._make(self._records[cookie])

    def __iter__(self) -> Iterator[int]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, cookie: object) -> bool:
        return cookie in self._records


class UdpListeners(Closing):
    """As TcpListeners, of the bound UDP sockets, connected ones too.

    Every socket has its cookie: the program asks for it, or, where it cannot (before Linux 5.12), a dump by
    sock_diag before each walk does. A walk may miss sockets or see them twice before Linux 6.16
    (socket_iterator.exactly_once()).
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._asks = True
        try:
            self._iterator = BpfIterator(Protocol.UDP, udp_source(ordered=ordered))
        except ProgramRejected:
            self._asks = False
            self._iterator = BpfIterator(Protocol.UDP, udp_source(asks=False, ordered=ordered))

    def close(self) -> None:
        """Unload it."""
        self._iterator.close()

    def listeners(self, wanted: Collection[int] | None = None) -> Mapping[int, MemberInfo]:
        """The sockets by cookie: all of them, whichever are wanted."""
        return self.read()

    def read(self) -> dict[int, UdpInfo]:
        """The bound sockets by cookie."""
        if not self._asks:
            diag.give_cookies(Protocol.UDP)
        records = map(UdpRecord._make, UDP_RECORD.iter_unpack(self._iterator.read()))
        return {record.cookie: _udp_info(record) for record in records}


Listeners = TcpListeners | UdpListeners


def infos_of(listeners: Listeners | None, wanted: Collection[int] | None = None) -> Mapping[int, MemberInfo]:
    """What a loaded iterator tells of each wanted socket now, or of all, by cookie; nothing where there is none."""
    return {} if listeners is None else listeners.listeners(wanted)


_Loaded = TypeVar("_Loaded", bound=AbstractContextManager[Any])


@contextmanager
def _loaded(kind: Callable[..., _Loaded], ordered: bool) -> Iterator[_Loaded | None]:
    with ExitStack() as stack:
        listeners: _Loaded | None = None
        with suppress(Unsupported):
            listeners = stack.enter_context(kind(ordered=ordered))
        yield listeners


def listeners_of(protocol: Protocol, *, ordered: bool = True) -> AbstractContextManager[Listeners | None]:
    """The loaded iterator; None where the kernel has none. Raises MissingCapability."""
    return _loaded(TcpListeners, ordered) if protocol is Protocol.TCP else _loaded(UdpListeners, ordered)


def _member(record: ListenerRecord | UdpRecord) -> dict[str, Any]:
    """The fields of a MemberInfo."""
    return {
        "cookie": record.cookie,
        "group": record.group,
        "program_id": record.program_id if record.has_program else None,
        "index": None if record.place == NOT_IN_SOCKS else record.place,
        "group_size": record.size,
    }


def _tcp_info(record: ListenerRecord) -> ListenerInfo:
    return ListenerInfo(
        **_member(record),
        accept_queue=record.accept_queue,
        backlog=record.backlog,
        half_open=record.half_open,
    )


def _udp_info(record: UdpRecord) -> UdpInfo:
    size = 16 if record.family == socket.AF_INET6 else 4
    return UdpInfo(
        **_member(record),
        is_connected=record.state == TcpState.ESTABLISHED,
        local=record.local[:size],
        local_port=record.local_port,
        remote=record.remote[:size],
        remote_port=socket.ntohs(record.remote_port),
        receive_queue=record.receive_queue,
        send_queue=record.send_queue,
        drops=record.drops,
    )
