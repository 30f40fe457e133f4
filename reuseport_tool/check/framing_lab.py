"""AutoLOWAT in a network namespace and a cgroup of its own, and connections to try it on."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool.autolowat.attachment import AttachmentPlan, defines
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import cgroup, netns
from reuseport_tool.models import Engine
from reuseport_tool.record import record
from reuseport_tool.waiting import wait_until

OPT_LEVEL, OPT_NAME = 0xDEADBEEF - 2**32, 0x8BADF00D - 2**32
DEADLINE_S = 10.0
LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_BYTES_RECEIVED, _DATA_SEGS_IN = 128, 152  # offsets in struct tcp_info
_POLL_S = 0.0005


@contextlib.contextmanager
def attached(plan: AttachmentPlan) -> Iterator[kernel.EngineMaps]:
    """The plan's programs at a throw-away cgroup that this process is in; without pins.

    Raises:
        Unsupported, MissingCapability, ProgramRejected.
    """
    with netns.throw_away(), cgroup.throw_away() as folder, programs_at(folder, plan) as maps:
        yield maps


@contextlib.contextmanager
def programs_at(folder: Path, plan: AttachmentPlan, at_devices: ExitStack | None = None) -> Iterator[kernel.EngineMaps]:
    """The plan's programs at a cgroup and the devices here, for as long as the block runs; raises as attached().

    Args:
        at_devices: takes those at the devices away when it is closed.
    """
    with ExitStack() as stack:
        engine = Engine(plan.engine)
        maps = kernel.EngineMaps.create(stack, engine, plan.ports, "")
        fd = cgroup.open_folder(folder)
        stack.callback(os.close, fd)
        stack.enter_context(kernel.attached(engine, maps, defines(plan), fd, at_devices or stack))
        maps.set_working(True)
        yield maps


@record
class Arrived:
    """Bytes of payload and segments with data that a socket has received in order."""

    size: int
    segments: int


@dataclass(kw_only=True)
class Pair:
    """A connection. `server` is the end that is watched; `client` sends each piece as a segment of its own."""

    client: socket.socket
    server: socket.socket
    level: select.epoll
    edge: select.epoll

    def opt_in(self, value: bytes = b"\1\0\0\0") -> None:
        """Raises OSError: EUCLEAN on a queue that is not empty, EPERM for a short value."""
        self.server.setsockopt(OPT_LEVEL, OPT_NAME, value)

    def send(self, piece: bytes) -> None:
        """Send a piece and wait until it has arrived as one segment. Raises ToolError where it has not."""
        before = arrived(self.server)
        self.client.sendall(piece)
        if not wait_until(lambda: arrived(self.server).size >= before.size + len(piece), DEADLINE_S, _POLL_S):
            raise ToolError(f"{len(piece)} bytes did not arrive over the loopback")
        now = arrived(self.server)
        if now != Arrived(size=before.size + len(piece), segments=before.segments + 1):
            raise ToolError(f"a piece of {len(piece)} bytes arrived as {now.segments - before.segments} segments")

    def lowat(self) -> int:
        return self.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def is_ready(self) -> bool:
        """Whether a level-triggered reader would be woken."""
        return bool(self.level.poll(0))

    def wakeups(self) -> int:
        """Events of the edge-triggered reader since the last call: 0 or 1, because the kernel merges them."""
        return len(self.edge.poll(0))


def arrived(sock: socket.socket) -> Arrived:
    """From TCP_INFO, which waits for a segment that is being worked on."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (size,), (segments,) = (
        struct.unpack_from("=Q", info, _BYTES_RECEIVED),
        struct.unpack_from("=I", info, _DATA_SEGS_IN),
    )
    return Arrived(size=size, segments=segments)


@contextlib.contextmanager
def pair(family: socket.AddressFamily = socket.AF_INET, port: int = 0) -> Iterator[Pair]:
    """A connection over the loopback, both ends in this process."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCALHOST[family], port))
        listener.listen()
        client = stack.enter_context(socket.create_connection(listener.getsockname()[:2], timeout=DEADLINE_S))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        level, edge = (stack.enter_context(select.epoll()) for _ in range(2))
        level.register(server, select.EPOLLIN)
        edge.register(server, select.EPOLLIN | select.EPOLLET)
        yield Pair(client=client, server=server, level=level, edge=edge)


def rpc_frame(header: int, payload: int) -> bytes:
    """A frame of the framing `rpc`: 8 bytes and what they say."""
    return struct.pack("<II", header, payload) + b"h" * header + b"p" * payload
