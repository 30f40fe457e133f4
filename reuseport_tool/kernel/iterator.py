"""A BPF iterator over TCP sockets: what sock_diag does not tell of a listener."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import btf
from reuseport_tool.kernel.abi import LISTENER_RECORD, ListenerRecord, TcpState
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.program import Source, bpf_dir
from reuseport_tool.models import Protocol

_OFFSETS = {
    "OFF_STATE": ("sock_common", "skc_state"),
    "OFF_COOKIE": ("sock_common", "skc_cookie"),
    "OFF_LISTENER": ("sock_common", "skc_listener"),
    "OFF_REUSEPORT_CB": ("sock", "sk_reuseport_cb"),
    "OFF_PROG": ("sock_reuseport", "prog"),
    "OFF_AUX": ("bpf_prog", "aux"),
    "OFF_ID": ("bpf_prog_aux", "id"),
    "OFF_ACCEPT_QUEUE": ("sock", "sk_ack_backlog"),
    "OFF_BACKLOG": ("sock", "sk_max_ack_backlog"),
    "OFF_HALF_OPEN": ("inet_connection_sock", "icsk_accept_queue.qlen"),
}


@dataclass(frozen=True, kw_only=True)
class ListenerInfo:
    """What the kernel keeps of a listener.

    Attributes:
        cookie: 0 when nobody has asked for it yet (a sock_diag dump asks for all).
        group: the address of the group's struct sock_reuseport, 0 for a socket without SO_REUSEPORT.
        program_id: of the group's program; 0 for a classic BPF filter, None without a program.
        accept_queue, half_open: connections.
    """

    cookie: int
    group: int
    program_id: int | None
    accept_queue: int
    backlog: int
    half_open: int


@dataclass(frozen=True)
class Snapshot:
    """One walk. `requests` maps a listener's cookie to the request sockets that point at it, also
    when that listener has been closed since."""

    listeners: dict[int, ListenerInfo]
    requests: dict[int, int]


@contextmanager
def listeners_of(protocol: Protocol) -> Iterator[TcpListeners | None]:
    """The loaded iterator; None where the kernel has none, which is so for UDP.

    Raises MissingCapability.
    """
    with ExitStack() as stack:
        listeners = None
        if protocol is Protocol.TCP:
            with suppress(Unsupported):
                listeners = stack.enter_context(TcpListeners())
        yield listeners


def source() -> Source:
    """The program of TcpListeners."""
    return Source(path=bpf_dir() / "sockets" / "tcp_listeners.c", defines=btf.offsets(_OFFSETS))


class TcpListeners(Closing):
    """The loaded iterator. Each read() walks the sockets of the calling thread's network namespace.

    Raises:
        Unsupported: no iterators (Linux 5.9) or no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self) -> None:
        self._iterator = BpfIterator(Protocol.TCP, source())

    def close(self) -> None:
        """Unload it."""
        self._iterator.close()

    def read(self) -> Snapshot:
        listeners: dict[int, ListenerInfo] = {}
        requests: dict[int, int] = {}
        for record in map(ListenerRecord._make, LISTENER_RECORD.iter_unpack(self._iterator.read())):
            if record.state == TcpState.LISTEN:
                listeners[record.cookie] = ListenerInfo(
                    cookie=record.cookie,
                    group=record.group,
                    program_id=record.program_id if record.has_program else None,
                    accept_queue=record.accept_queue,
                    backlog=record.backlog,
                    half_open=record.half_open,
                )
            elif record.state == TcpState.NEW_SYN_RECV:
                requests[record.cookie] = requests.get(record.cookie, 0) + 1
        return Snapshot(listeners, requests)
