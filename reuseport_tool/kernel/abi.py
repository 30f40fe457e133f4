"""The records that programs and this process share, as bpf/abi.h has them.

Every program is compiled with SIZES, and bpf/abi.h compares them with its own.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple


class TcpState(enum.IntEnum):
    """include/net/tcp_states.h. An unconnected UDP socket is in CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class ResetKind(enum.IntEnum):
    """enum reset_kind: what a reset ended."""

    NEVER_ACCEPTED = 0
    ACCEPTED = 1
    HANDSHAKE = 2
    REFUSED = 3


NO_IDLE = NOT_IN_SOCKS = 0xFFFFFFFF

_TUPLE = "16s16sHHHHII"
TUPLE = struct.Struct(f"={_TUPLE}")
SOCKET_RECORD = struct.Struct(f"=QQQ{_TUPLE}IIII")
_MEMBERSHIP = "QIIII"
LISTENER_RECORD = struct.Struct(f"=Q{_MEMBERSHIP}IIII")
UDP_RECORD = struct.Struct(f"=Q{_TUPLE}{_MEMBERSHIP}IIII")
FLOW_KEY = struct.Struct("=16s16s2sH")
FLOW_WORD = struct.Struct("=IHH")
CONNECTION_ID = struct.Struct("=20sI")
CONNECTION = struct.Struct("=IHHII")
SENT = struct.Struct("=QQ")
TARGET = struct.Struct(f"={_TUPLE}II")
OUTCOME = struct.Struct("=QiI")
HELD_SOCKET = struct.Struct("=QII")
LISTEN_EVENT = struct.Struct("=QQ16sIIIHHII")

SIZES = {
    "SIZEOF_TUPLE": TUPLE.size,
    "SIZEOF_SOCKET_RECORD": SOCKET_RECORD.size,
    "SIZEOF_LISTENER_RECORD": LISTENER_RECORD.size,
    "SIZEOF_UDP_RECORD": UDP_RECORD.size,
    "SIZEOF_FLOW_KEY": FLOW_KEY.size,
    "SIZEOF_FLOW_WORD": FLOW_WORD.size,
    "SIZEOF_CONNECTION_ID": CONNECTION_ID.size,
    "SIZEOF_CONNECTION": CONNECTION.size,
    "SIZEOF_SENT": SENT.size,
    "SIZEOF_TARGET": TARGET.size,
    "SIZEOF_OUTCOME": OUTCOME.size,
    "SIZEOF_LISTEN_EVENT": LISTEN_EVENT.size,
    "SIZEOF_HELD_SOCKET": HELD_SOCKET.size,
}


class SocketRecord(NamedTuple):
    """struct socket_record with its tuple in line."""

    cookie: int
    inode: int
    synack_us: int
    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    family: int
    state: int
    device: int
    unused: int
    uid: int
    idle: int
    receive_queue: int
    send_queue: int

    def as_target(self, states: int) -> bytes:
        """The struct target that ends this socket in one of these states, a mask of 1 << state."""
        at = self._fields.index("local")
        return TARGET.pack(*self[at : at + 8], states, 0)


class ListenEventRecord(NamedTuple):
    """struct listen_event."""

    time_ns: int
    inode: int
    address: bytes
    pid: int
    uid: int
    device: int
    family: int
    port: int
    v6only: int
    reuseport: int


class ListenerRecord(NamedTuple):
    """struct listener_record with its membership in line, whose `index` is `place` here."""

    cookie: int
    group: int
    has_program: int
    program_id: int
    place: int
    size: int
    state: int
    accept_queue: int
    backlog: int
    half_open: int


class UdpRecord(NamedTuple):
    """struct udp_record with its tuple and its membership in line, whose `index` is `place` here."""

    cookie: int
    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    family: int
    state: int
    device: int
    unused_tuple: int
    group: int
    has_program: int
    program_id: int
    place: int
    size: int
    receive_queue: int
    send_queue: int
    drops: int
    unused: int
