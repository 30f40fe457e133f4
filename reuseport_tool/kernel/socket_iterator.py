"""BPF iterators over all TCP and UDP sockets of a network namespace."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ProgramRejected
from reuseport_tool.kernel import btf, diag
from reuseport_tool.kernel.abi import SOCKET_RECORD, SocketRecord
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.program import Source, bpf_dir
from reuseport_tool.models import Protocol

_CLOCK_MONOTONIC_COARSE = 6
_WALKS_MAX = 10
_TUPLE_FIELDS = {
    "OFF_FAMILY": "sock_common.skc_family",
    "OFF_STATE": "sock_common.skc_state",
    "OFF_LOCAL_PORT": "sock_common.skc_num",
    "OFF_REMOTE_PORT": "sock_common.skc_dport",
    "OFF_DEVICE": "sock_common.skc_bound_dev_if",
    "OFF_LOCAL4": "sock_common.skc_rcv_saddr",
    "OFF_REMOTE4": "sock_common.skc_daddr",
    "OFF_SOCKET": "sock.sk_socket",
}
_FIELDS = {
    Protocol.TCP: {
        "OFF_ACCEPT_QUEUE": "sock.sk_ack_backlog",
        "OFF_BACKLOG": "sock.sk_max_ack_backlog",
        "OFF_RCV_NXT": "tcp_sock.rcv_nxt",
        "OFF_COPIED_SEQ": "tcp_sock.copied_seq",
        "OFF_WRITE_SEQ": "tcp_sock.write_seq",
        "OFF_SND_UNA": "tcp_sock.snd_una",
        "OFF_LRCVTIME": "inet_connection_sock.icsk_ack.lrcvtime",
        "OFF_LSNDTIME": "tcp_sock.lsndtime",
        "OFF_SNT_SYNACK": "tcp_request_sock.snt_synack",
    },
    Protocol.UDP: {
        "OFF_RMEM_ALLOC": "sock.sk_backlog.rmem_alloc",
        "OFF_WMEM_ALLOC": "sock.sk_wmem_alloc",
        "OFF_FORWARD_DEFICIT": "udp_sock.forward_deficit",
    },
}


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cycles meanwhile: among 100,000 records that have none it takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class SocketWalk(Closing):
    """Walks whose records are parsed. A context manager; raises as BpfIterator.

    Every socket has its cookie: the program asks for it, or, where it cannot (before Linux 5.12), a dump
    by sock_diag before each walk does.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._asks = True
        try:
            self._iterator = BpfIterator(protocol, walk_source(protocol))
        except ProgramRejected:
            self._asks = False
            self._iterator = BpfIterator(protocol, walk_source(protocol, asks=False))

    def read(self, chunk: int = 1 << 16) -> list[SocketRecord]:
        """The sockets of the calling thread's network namespace, in the order of the kernel's hash tables."""
        if not self._asks:
            diag.give_cookies(self._protocol)
        data = self._iterator.read(chunk)
        with collector_paused():
            return list(map(SocketRecord._make, SOCKET_RECORD.iter_unpack(data)))

    def close(self) -> None:
        self._iterator.close()


def walk_source(protocol: Protocol, *, asks: bool = True) -> Source:
    """The program of a SocketWalk; one that asks for cookies needs Linux 5.12."""
    cookie = {} if asks else {"OFF_COOKIE": btf.offset("sock_common", "skc_cookie")}
    defines = {**tuple_offsets(), **btf.offsets(_FIELDS[protocol]), **cookie}
    return Source(path=bpf_dir() / "sockets" / f"{protocol}_sockets.c", defines=defines)


@functools.cache
def tuple_offsets() -> Mapping[str, int]:
    """What bpf/sockets/sockets.h is compiled with."""
    inode = btf.offset("socket_alloc", "vfs_inode.i_ino") - btf.offset("socket_alloc", "socket")
    return {**btf.offsets(_TUPLE_FIELDS), **btf.ipv6_offsets(), "OFF_INODE": inode}


def exactly_once(protocol: Protocol) -> bool | None:
    """Whether a socket that lives through a walk is seen exactly once; None where BTF does not tell.

    The iterators keep a batch of sockets of one bucket. Since "bpf: udp: Avoid socket skips and repeats
    during iteration" (Linux 6.16) and its counterpart for TCP (6.17) they remember by cookie where they were
    in it, in a union made for that, which is the trace of the change in BTF. Before, they remembered a
    number, which is wrong as soon as a socket of the bucket comes or goes. So did the iterators without a batch
    (TCP before 5.15, UDP before 6.6), whose trace is a field that they had in the state of /proc/net/tcp and udp.
    """
    if btf.has_union(f"bpf_{protocol}_iter_batch_item"):
        return True
    numbered = btf.has_struct(f"bpf_{protocol}_iter_state") or btf.has_field(f"{protocol}_iter_state", "bpf_seq_afinfo")
    return False if numbered else None


class Walker(Closing):
    """The loaded iterators of some protocols. A context manager.

    Attributes:
        walks: how many walks over one protocol were merged, at most.

    Raises:
        Unsupported: no iterators (Linux 5.9), or no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self, protocols: Collection[Protocol]) -> None:
        self.protocols = tuple(protocols)
        self.walks = 0
        with ExitStack() as stack:
            self._walks = {protocol: stack.enter_context(SocketWalk(protocol)) for protocol in protocols}
            self._stack = stack.pop_all()

    def read(self) -> dict[Protocol, list[SocketRecord]]:
        """Walk over the sockets of each protocol, as often as it takes: see walk_all()."""
        found = {}
        for protocol, walk in self._walks.items():
            found[protocol], walks = (walk.read(), 1) if exactly_once(protocol) else walk_all(walk.read)
            self.walks = max(self.walks, walks)
        return found

    def promise(self) -> bool | None:
        """Whether each walked protocol is iterated exactly once; None where one of them does not tell."""
        answers = {exactly_once(protocol) for protocol in self.protocols}
        return False if False in answers else None if None in answers else True

    def close(self) -> None:
        self._stack.close()


def walk_all(read: Callable[[], list[SocketRecord]]) -> tuple[list[SocketRecord], int]:
    """Walks by an iterator that may skip and repeat sockets, merged, until one brings nothing new or there were many.

    A walk that is cut by sockets that come and go missed 280 of 3,000 (UDP, Linux 6.1). What has closed since it was
    seen is still among the sockets. Returns how many walks there were, too.
    """
    merged: dict[int, SocketRecord] = {}
    for walks in range(1, _WALKS_MAX + 1):
        before = len(merged)
        merged |= {raw.cookie: raw for raw in read()}
        if walks > 1 and len(merged) == before:
            break
    return list(merged.values()), walks


@functools.cache
def jiffies_per_second() -> int:
    """HZ of the kernel: the coarse clocks have its period as their resolution (KTIME_LOW_RES)."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
