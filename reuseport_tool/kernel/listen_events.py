"""Events of sockets that begin to listen (TCP) or are bound (UDP), from BPF programs through a ring buffer."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import bpf, btf, cgroup, libbpf, links, netns, process_id
from reuseport_tool.kernel.abi import LISTEN_EVENT, ListenEventRecord
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load
from reuseport_tool.models import Endpoint, Identity, Protocol
from reuseport_tool.record import record

RING_BYTES = 1 << 17
_IN_FLIGHT_S = 0.001
_OFFSETS = {
    "OFF_PORT": "sock_common.skc_num",
    "OFF_NET": "sock_common.skc_net",
    "OFF_INUM": "net.ns.inum",
    "OFF_FAMILY": "sock_common.skc_family",
    "OFF_LOCAL": "sock_common.skc_rcv_saddr",
    "OFF_LOCAL6": "sock_common.skc_v6_rcv_saddr",
    "OFF_DEVICE": "sock_common.skc_bound_dev_if",
    "OFF_UID": "sock.sk_uid",
    "OFF_SOCKET": "sock.sk_socket",
    "OFF_INODE": "socket_alloc.vfs_inode.i_ino",
}
_BITS = {"V6ONLY": ("sock_common", "skc_ipv6only"), "REUSEPORT": ("sock_common", "skc_reuseport")}


@record
class NewListener:
    """A TCP socket that begins to listen, as the kernel has it at that moment.

    `inode` is that of its descriptors; without `reuseport` no other socket can join it.
    """

    identity: Identity
    inode: int
    reuseport: bool


@record
class ListenEvent:
    """One listen() or bind().

    Attributes:
        time_ns: by CLOCK_MONOTONIC. Of TCP a moment before the socket can be found.
        pid: of the process that called it, in our PID namespace. None where the kernel does not tell.
        port: the local one.
        listener: None for UDP: look for what is bound.
    """

    time_ns: int
    pid: int | None
    port: int
    listener: NewListener | None = None


class ListenEvents(Closing):
    """What begins to listen on some ports of the calling thread's network namespace. A context manager.

    Args:
        ports: which; none for all.

    Raises:
        Unsupported: no ring buffer (Linux 5.8), no BTF; for UDP no cgroup v2 file system.
        MissingCapability: CAP_BPF, CAP_PERFMON, and for UDP CAP_NET_ADMIN are needed.
    """

    def __init__(self, protocol: Protocol, ports: Collection[int], ring_bytes: int = RING_BYTES) -> None:
        self._found: list[ListenEvent] = []
        self._received = 0
        self._netns = netns.identity()
        with ExitStack() as stack:
            self._ring = stack.enter_context(_ring(ring_bytes))
            self._told = stack.enter_context(bpf.Map.create(bpf.MapType.ARRAY, "told", value_size=8))
            self._reader = _Reader(self._ring, self._take)
            stack.callback(self._reader.close)
            wanted = stack.enter_context(_wanted(protocol, ports))
            maps = {"RING_FD": self._ring.fd, "TOLD_FD": self._told.fd, "WANTED_FD": wanted.fd}
            for handle in _attach_udp(maps) if protocol is Protocol.UDP else _attach_tcp(maps):
                stack.enter_context(handle)
            self._owned = stack.pop_all()

    def _take(self, data: bytes) -> None:
        record = ListenEventRecord._make(LISTEN_EVENT.unpack(data))
        listener = _listener(record, self._netns) if record.family else None
        event = ListenEvent(time_ns=record.time_ns, pid=record.pid or None, port=record.port, listener=listener)
        self._found.append(event)

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._ring.fd

    def drain(self) -> tuple[list[ListenEvent], bool]:
        """The events since the last call, and whether others found the ring full."""
        self._reader.consume()
        if self._number_told() != self._received + len(self._found):
            time.sleep(_IN_FLIGHT_S)  # one may be between the count and the ring
            self._reader.consume()
        events, self._found = self._found, []
        told = self._number_told()
        lost = told > self._received + len(events)
        self._received = told
        return events, lost

    def _number_told(self) -> int:
        return int.from_bytes(self._told.lookup(0), sys.byteorder)

    def close(self) -> None:
        self._owned.close()


def _listener(record: ListenEventRecord, netns_inode: int) -> NewListener:
    packed = record.address if record.family == socket.AF_INET6 else record.address[:4]
    address = socket.inet_ntop(record.family, packed)
    endpoint = Endpoint(
        protocol=Protocol.TCP,
        address=address,
        port=record.port,
        device=links.device_name(record.device),
        v6only=address == "::" and bool(record.v6only),
    )
    return NewListener(
        identity=Identity(endpoint=endpoint, uid=record.uid, netns=netns_inode),
        inode=record.inode,
        reuseport=bool(record.reuseport),
    )


def _ring(size: int) -> bpf.Map:
    try:
        return bpf.Map.create(bpf.MapType.RINGBUF, "listen_events", key_size=0, value_size=0, max_entries=size)
    except ToolError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
            raise
        raise Unsupported("the kernel has no BPF ring buffer", hint="it came with Linux 5.8") from error


def _wanted(protocol: Protocol, ports: Collection[int]) -> bpf.Map:
    """The map `wanted` of bpf/listen/listen_events.h: namespace << 16 | port, and port 0 for all; our PID namespace."""
    namespace = netns.cookie() if protocol is Protocol.UDP else netns.identity()
    keys = [namespace << 16 | port for port in ports or (0,)]
    wanted = bpf.Map.create(bpf.MapType.HASH, "wanted", key_size=8, max_entries=len(keys))
    for key in keys:
        wanted.update_u32(key, process_id.namespace())
    return wanted


class _Reader:
    """libbpf's reader of a ring buffer."""

    def __init__(self, ring: bpf.Map, take: Callable[[bytes], None]) -> None:
        def found(_context: object, data: int, size: int) -> int:
            take(ctypes.string_at(data, size))
            return 0

        self._callback = libbpf.RING_CALLBACK(found)  # libbpf keeps only its address
        with bpf.translated("reading a BPF ring buffer"):
            self._reader = libbpf.pointer("ring_buffer__new", ring.fd, self._callback, None, None)

    def consume(self) -> None:
        libbpf.library().ring_buffer__consume(self._reader)

    def close(self) -> None:
        libbpf.library().ring_buffer__free(self._reader)


_MAPS = ("RING_FD", "TOLD_FD", "WANTED_FD")


def tcp_source() -> Source:
    """The program that tells of listen()."""
    defines = {**btf.offsets(_OFFSETS), **process_id.defines()}
    for name, field in _BITS.items():
        defines[f"OFF_{name}"], defines[f"MASK_{name}"] = btf.bit(*field)
    return Source(path=bpf_dir() / "listen" / "tcp_listen_events.c", defines=defines, maps=_MAPS)


def udp_source() -> Source:
    """The program that tells of bind()."""
    return Source(path=bpf_dir() / "listen" / "udp_bind_events.c", maps=_MAPS)


def _attach_tcp(maps: Mapping[str, int]) -> list[bpf.Handle]:
    source = tcp_source()
    with load(source, source.path.stem, ProgramType.RAW_TRACEPOINT, AttachType.NONE, maps) as program:
        return [bpf.attach_raw_tracepoint(program, "inet_sock_set_state")]


def _attach_udp(maps: Mapping[str, int]) -> list[bpf.Handle]:
    source = udp_source()
    with ExitStack() as stack:
        root = os.open(cgroup.root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        handles = []
        for hook in (AttachType.CGROUP_INET4_POST_BIND, AttachType.CGROUP_INET6_POST_BIND):
            with load(source, source.path.stem, ProgramType.CGROUP_SOCK, hook, maps) as program:
                handles.append(bpf.attach_cgroup(program, root, hook))
        return handles
