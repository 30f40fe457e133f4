"""Events of sockets that begin to listen (TCP) or are bound (UDP), from BPF programs through a ring buffer."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import bpf, btf, cgroup, netns
from reuseport_tool.kernel.program import AttachType, ProgramType, bpf_dir, load
from reuseport_tool.models import Protocol

RING_BYTES = 1 << 16
_IN_FLIGHT_S = 0.001
_OFFSETS = {
    "OFF_PORT": ("sock_common", "skc_num"),
    "OFF_NET": ("sock_common", "skc_net"),
    "OFF_INUM": ("net", "ns.inum"),
}


class _Event(ctypes.Structure):
    """struct event of bpf/listen/listen_events.h."""

    _fields_ = [("time_ns", ctypes.c_uint64), ("pid", ctypes.c_uint64)]


@dataclass(frozen=True)
class ListenEvent:
    """One listen() or bind().

    Attributes:
        time_ns: by CLOCK_MONOTONIC. Of TCP a moment before the socket can be found.
        pid: of the caller as the first PID namespace has it: a hint. None where the kernel does not tell.
    """

    time_ns: int
    pid: int | None


class ListenEvents(Closing):
    """What begins to listen on a port of the calling thread's network namespace. A context manager.

    Raises:
        Unsupported: no ring buffer (Linux 5.8), no BTF; for UDP no cgroup v2 file system.
        MissingCapability: CAP_BPF, CAP_PERFMON, and for UDP CAP_NET_ADMIN are needed.
    """

    def __init__(self, protocol: Protocol, port: int, ring_bytes: int = RING_BYTES) -> None:
        self._found: list[ListenEvent] = []
        self._received = 0
        with ExitStack() as stack:
            self._ring = stack.enter_context(_ring(ring_bytes))
            self._told = stack.enter_context(bpf.Map.create(bpf.MapType.ARRAY, "told", value_size=8))
            self._reader = _Reader(self._ring, self._take)
            stack.callback(self._reader.close)
            defines = {"RING_FD": self._ring.fd, "TOLD_FD": self._told.fd, "PORT": port}
            for handle in _attach_udp(defines) if protocol is Protocol.UDP else _attach_tcp(defines):
                stack.enter_context(handle)
            self._owned = stack.pop_all()

    def _take(self, record: _Event) -> None:
        self._found.append(ListenEvent(record.time_ns, record.pid or None))

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


def _ring(size: int) -> bpf.Map:
    try:
        return bpf.Map.create(bpf.MapType.RINGBUF, "listen_events", key_size=0, value_size=0, max_entries=size)
    except MissingCapability:
        raise
    except ToolError as error:
        raise Unsupported("the kernel has no BPF ring buffer", hint="it came with Linux 5.8") from error


class _Reader:
    """libbpf's reader of a ring buffer."""

    def __init__(self, ring: bpf.Map, take: Any) -> None:
        from bcc import lib
        from bcc.libbcc import _RINGBUF_CB_TYPE

        def found(_context: object, data: int, _size: int) -> int:
            take(_Event.from_address(data))
            return 0

        self._lib = lib
        self._callback = _RINGBUF_CB_TYPE(found)  # libbpf keeps only its address
        self._reader = lib.bpf_new_ringbuf(ring.fd, self._callback, None)
        if not self._reader:
            raise Unsupported("libbpf cannot read a BPF ring buffer")

    def consume(self) -> None:
        self._lib.bpf_consume_ringbuf(self._reader)

    def close(self) -> None:
        self._lib.bpf_free_ringbuf(self._reader)


def _attach_tcp(defines: Mapping[str, int]) -> list[bpf.Handle]:
    offsets = btf.offsets(_OFFSETS)
    constants = {**defines, **offsets, "NETNS": netns.identity()}
    source = bpf_dir() / "listen" / "tcp_listen_events.c"
    with load(source, source.stem, ProgramType.RAW_TRACEPOINT, AttachType.NONE, constants) as program:
        return [bpf.attach_raw_tracepoint(program, "inet_sock_set_state")]


def _attach_udp(defines: Mapping[str, int]) -> list[bpf.Handle]:
    constants = {**defines, "NETNS_COOKIE": netns.cookie()}
    source = bpf_dir() / "listen" / "udp_bind_events.c"
    with ExitStack() as stack:
        root = os.open(cgroup.root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        handles = []
        for hook in (AttachType.CGROUP_INET4_POST_BIND, AttachType.CGROUP_INET6_POST_BIND):
            with load(source, source.stem, ProgramType.CGROUP_SOCK, hook, constants) as program:
                handles.append(bpf.attach_cgroup(program, root, hook))
        return handles
