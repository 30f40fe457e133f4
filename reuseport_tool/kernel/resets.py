"""The resets that the kernel sends for some ports, and what each of them ended: bpf/proof/tcp_resets.c."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import bpf, btf, netns, process_id
from reuseport_tool.kernel.abi import ResetKind
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load
from reuseport_tool.models import Resets
from reuseport_tool.models.proof import PortResets, SideResets
from reuseport_tool.record import record

_TRACEPOINT = "tcp_send_reset"
PROGRAMS = (("tcp_ended", "inet_sock_set_state"), ("tcp_resets", _TRACEPOINT))
"""Each with its tracepoint. First what sees connections end, so that none of them is taken for a handshake."""
_LATE_NS = 60 * 10**9  # for so long packets of a connection that was reset may still come
_PLACES_MAX, _COUNTS_MAX, _SEEN_MAX = 1024, 8192, 16384
_PEER_SIZE, _SEEN_SIZE = 20, 16
_OFFSETS = {
    "OFF_STATE": "sock_common.skc_state",
    "OFF_FLAGS": "sock_common.skc_flags",
    "OFF_FAMILY": "sock_common.skc_family",
    "OFF_REMOTE": "sock_common.skc_daddr",
    "OFF_REMOTE6": "sock_common.skc_v6_daddr",
    "OFF_REMOTE_PORT": "sock_common.skc_dport",
    "OFF_NET": "sock_common.skc_net",
    "OFF_SPORT": "inet_sock.inet_sport",
    "OFF_SOCKET": "sock.sk_socket",
    "OFF_INUM": "net.ns.inum",
    "OFF_HEAD": "sk_buff.head",
    "OFF_NETWORK_HEADER": "sk_buff.network_header",
    "OFF_TRANSPORT_HEADER": "sk_buff.transport_header",
    "OFF_SKB_DEVICE": "sk_buff.dev",
    "OFF_DEVICE_NET": "net_device.nd_net",
}
MAPS = ("WATCHED_FD", "COUNTS_FD", "SEEN_FD")


_BEGUN_AT, _SEES_REFUSED = 0, 1  # elements beside the counts: no connection has port 0
_NOTHING = Resets(never_accepted=0, handshakes=0, refused=0, accepted=0)


@record
class ResetCount:
    """How many resets of one kind there were on one port.

    `pid` is the process that closed the connections; None where none did, or is known to have, or where the process is
    not of our PID namespace.
    """

    port: int
    kind: ResetKind
    pid: int | None
    count: int

    @property
    def is_own(self) -> bool:
        """Whether this process did it by --kill-leftovers, and not as the last to close a listener."""
        return self.pid == os.getpid() and self.kind is ResetKind.ACCEPTED


class Counts(Closing):
    """The map of counts. A context manager; it may be pinned, and opened by another process."""

    def __init__(self, entry: bpf.Map) -> None:
        self.map = entry

    def begin(self, sees_refused: bool | None) -> None:
        """Note when it begins, and whether refused SYNs are seen."""
        self.map.update(_BEGUN_AT, _packed(time.time_ns()))
        self.map.update(_SEES_REFUSED, _packed(int(bool(sees_refused))))

    def add(self, port: int) -> None:
        """Have an element for each kind, which may be counted up when there is no room for others."""
        for kind in ResetKind:
            self.map.update(_key(port, kind), bytes(8))

    @property
    def begun_at(self) -> float:
        """Seconds since 1970."""
        return self._value(_BEGUN_AT) / 1e9

    def rows(self) -> tuple[ResetCount, ...]:
        """All that was counted so far, without what is 0."""
        found = []
        for key in sorted(key for key in self.map.every_key() if key >> 48):
            port, kind, pid = key >> 48, ResetKind(key >> 32 & 0xFFFF), key & 0xFFFFFFFF
            if count := self._value(key):
                found.append(ResetCount(port=port, kind=kind, pid=pid or None, count=count))
        return tuple(found)

    def of(self, port: int) -> Resets:
        """The sums of one port. The accepted connections that this process ended on purpose are nobody's loss."""
        sums = _sums(row for row in self.rows() if row.port == port and not row.is_own)
        return Resets(
            never_accepted=sums[ResetKind.NEVER_ACCEPTED],
            handshakes=sums[ResetKind.HANDSHAKE],
            refused=sums[ResetKind.REFUSED] if self._value(_SEES_REFUSED) else None,
            accepted=sums[ResetKind.ACCEPTED],
        )

    def by_processes(self, ports: Collection[int], pids: Collection[int]) -> SideResets:
        """What these processes brought about on some ports."""
        sums = _sums(row for row in self.rows() if row.port in ports and row.pid in pids)
        return SideResets(never_accepted=sums[ResetKind.NEVER_ACCEPTED], accepted=sums[ResetKind.ACCEPTED])

    def _value(self, key: int) -> int:
        return int.from_bytes(self.map.lookup(key), sys.byteorder)

    def close(self) -> None:
        self.map.close()


def _sums(rows: Iterable[ResetCount]) -> Counter[ResetKind]:
    """By kind."""
    sums: Counter[ResetKind] = Counter()
    for row in rows:
        sums[row.kind] += row.count
    return sums


class ResetCounter(Closing):
    """Counts from the moment it exists until it is closed, or its process ends. A context manager.

    Args:
        ports: of the calling thread's network namespace.
        finds_out: whether it is found out first what the kernel shows; see sees_packets_without_socket().

    Raises:
        Unsupported: no BTF, or no such tracepoint (Linux 4.16).
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self, ports: Collection[int], *, finds_out: bool = True) -> None:
        self._netns = netns.identity()
        self._ports: set[int] = set()
        with ExitStack() as stack:
            maps = new_maps(stack)
            self._watched, self.counts = maps["WATCHED_FD"], Counts(maps["COUNTS_FD"])
            self.counts.begin(finds_out and sees_packets_without_socket())
            _attach({name: entry.fd for name, entry in maps.items()}, stack)
            self._owned = stack.pop_all()
        self.watch(ports)

    def watch(self, ports: Collection[int]) -> None:
        """Count on these ports, too."""
        for port in set(ports) - self._ports:
            self.counts.add(port)
            self._watched.update_u32(self._netns << 16 | port, process_id.namespace())
            self._ports.add(port)

    def by_port(self) -> tuple[PortResets, ...]:
        """What was counted on each port."""
        return tuple(PortResets(port=port, resets=self.counts.of(port)) for port in sorted(self._ports))

    def total(self) -> Resets:
        """All ports together."""
        return functools.reduce(Resets.plus, (entry.resets for entry in self.by_port()), _NOTHING)

    def of(self, pids: Collection[int]) -> SideResets:
        """What these processes brought about, on all ports."""
        return self.counts.by_processes(self._ports, pids)

    def close(self) -> None:
        self._owned.close()


def source() -> Source:
    """The program that counts. Raises Unsupported."""
    if not btf.has_tracepoint(_TRACEPOINT, "sock", "sk_buff"):
        raise Unsupported(f"the kernel has no tracepoint {_TRACEPOINT} in a known form", hint="it came with Linux 4.16")
    defines = {**btf.offsets(_OFFSETS), **process_id.defines(), "LATE_NS": _LATE_NS}
    return Source(path=bpf_dir() / "proof" / "tcp_resets.c", defines=defines, maps=MAPS)


@functools.cache
def sees_packets_without_socket() -> bool | None:
    """Whether the tracepoint is reached where no whole socket is, as from Linux 6.10 on; None where it cannot be tried.

    If not, refused SYNs and resets out of TIME_WAIT are not seen, and of handshakes only those whose final ACK finds
    another listener. It is tried in a new network namespace, or in the caller's own where none can be made, as in a
    follower without CAP_SYS_ADMIN.
    """
    for place in (netns.throw_away, contextlib.nullcontext):
        with contextlib.suppress(ToolError, OSError), place():
            return _sees_a_refusal()
    return None


def _sees_a_refusal() -> bool:
    """By a connection to a port that this process has on loopback, and does not listen on. Raises OSError."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with ResetCounter([silent.getsockname()[1]], finds_out=False) as counter:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(silent.getsockname(), timeout=1).close()
            return any(row.kind is ResetKind.REFUSED for row in counter.counts.rows())


@contextlib.contextmanager
def counting(ports: Collection[int]) -> Iterator[ResetCounter | str]:
    """A counter, or why there can be none: resets are then unknown, and not 0."""
    with ExitStack() as stack:
        try:
            counter: ResetCounter | str = stack.enter_context(ResetCounter(ports))
        except ToolError as error:
            counter = error.message
        yield counter


def new_maps(stack: ExitStack) -> dict[str, bpf.Map]:
    """The maps of the program, by their constants; `stack` closes them."""
    shapes = {
        "WATCHED_FD": (bpf.MapType.HASH, 8, 4, _PLACES_MAX),
        "COUNTS_FD": (bpf.MapType.HASH, 8, 8, _COUNTS_MAX),
        "SEEN_FD": (bpf.MapType.LRU_HASH, _PEER_SIZE, _SEEN_SIZE, _SEEN_MAX),
    }
    return {
        constant: stack.enter_context(
            bpf.Map.create(kind, "resets", key_size=key, value_size=value, max_entries=entries)
        )
        for constant, (kind, key, value, entries) in shapes.items()
    }


def _key(port: int, kind: ResetKind, pid: int = 0) -> int:
    return port << 48 | kind << 32 | pid


def _packed(value: int) -> bytes:
    return value.to_bytes(8, sys.byteorder)


def _attach(maps: dict[str, int], stack: ExitStack) -> None:
    code = source()
    for function, tracepoint in PROGRAMS:
        with load(code, function, ProgramType.RAW_TRACEPOINT, AttachType.NONE, maps) as program:
            stack.enter_context(bpf.attach_raw_tracepoint(program, tracepoint))
