"""Messages of sock_diag(7): one request, and the records that answer it.

By hand, because these are three structs, and importing a netlink library takes longer than all the rest of `status`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from reuseport_tool.errors import ToolError
from reuseport_tool.models import Protocol
from reuseport_tool.record import record

# include/uapi/linux/netlink.h and sock_diag.h
_NETLINK_SOCK_DIAG = 4
BY_FAMILY, DESTROY = 20, 21
_F_REQUEST, _F_ACK, _F_DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI2s2s16s16sIQ")
_MESSAGE = struct.Struct("=BBBB2s2s16s16sIQIIIII")
_TYPE_MASK = 0x3FFF
_ATTRIBUTE = struct.Struct("=HH")
# include/uapi/linux/inet_diag.h; with INFO comes the name of the upper-layer protocol, too.
_SKV6ONLY, _ULP_INFO = 11, 19
EXTENSION_INFO = 1 << 1
_REQ_BYTECODE, _BC_S_COND = 1, 7
_CONDITION = struct.Struct("=BBHBBHi")  # struct inet_diag_bc_op and struct inet_diag_hostcond up to the address
_BUFFER_BYTES = 1 << 18
_TIMEOUT_S = 10.0
_IPPROTO = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
ALL_STATES = 0xFFFFFFFF
_MPTCP = b"mptcp"
_HINT = "the kernel needs CONFIG_INET_DIAG"


@record
class DiagRequest:
    """struct inet_diag_req_v2: which sockets are meant. Ports in network order, addresses padded to 16 bytes.

    A dump does not look at the source address; `bound_to`, of 4 or 16 bytes, is compared with that.
    """

    protocol: Protocol
    family: int
    states: int = ALL_STATES
    source: tuple[bytes, bytes] = (bytes(2), bytes(16))
    destination: tuple[bytes, bytes] = (bytes(2), bytes(16))
    device: int = 0
    cookie: int = 0
    extensions: int = 0
    bound_to: bytes = b""

    def pack(self) -> bytes:
        ports, addresses = zip(self.source, self.destination, strict=True)
        return _REQUEST.pack(
            *(self.family, _IPPROTO[self.protocol], self.extensions, 0, self.states),
            *(*ports, *addresses, self.device, self.cookie),
        ) + (self._condition() if self.bound_to else b"")

    def _condition(self) -> bytes:
        """The attribute with a filter of one operation: the source address, any port. A jump over the end refuses."""
        size = _CONDITION.size + len(self.bound_to)
        operation = (_BC_S_COND, size, size + 4)
        host = (self.family, 8 * len(self.bound_to), 0, -1)
        return (
            _ATTRIBUTE.pack(_ATTRIBUTE.size + size, _REQ_BYTECODE) + _CONDITION.pack(*operation, *host) + self.bound_to
        )


@record
class Record:
    """struct inet_diag_msg: a socket. `port` in host order, the address padded to 16 bytes.

    `is_mptcp` says that it is the TCP socket inside an MPTCP one; only told if EXTENSION_INFO was asked for.
    """

    family: int
    state: int
    port: int
    address: bytes
    device: int
    cookie: int
    receive_queue: int
    send_queue: int
    uid: int
    inode: int
    v6only: bool
    is_mptcp: bool

    @classmethod
    def unpack(cls, payload: bytes) -> Record:
        family, state, _, _, port, _, address, _, device, cookie, _, receive, send, uid, inode = _MESSAGE.unpack_from(
            payload
        )
        # To take the attributes apart takes longer than all the rest, and few sockets have one that matters.
        matters = family == socket.AF_INET6 or _MPTCP in payload
        attributes = _attributes(payload[_MESSAGE.size :]) if matters else {}
        return cls(
            family=family,
            state=state,
            port=int.from_bytes(port, "big"),
            address=address,
            device=device,
            cookie=cookie,
            receive_queue=receive,
            send_queue=send,
            uid=uid,
            inode=inode,
            v6only=any(attributes.get(_SKV6ONLY, b"")),
            is_mptcp=_MPTCP in attributes.get(_ULP_INFO, b""),
        )


def _attributes(data: bytes) -> dict[int, bytes]:
    """The attributes (struct nlattr) behind a message, by type."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (max(length, _ATTRIBUTE.size) + 3) // 4 * 4
    return found


def opened() -> socket.socket:
    """A socket to ask by. A context manager. Raises ToolError where the kernel has none."""
    try:
        diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise ToolError(f"sock_diag failed: {error}", hint=_HINT) from error
    diag.settimeout(_TIMEOUT_S)
    return diag


def dump(request: DiagRequest) -> Iterator[Record]:
    """All sockets that are meant, in the order the kernel gives.

    Raises:
        OSError: ENOENT where the kernel does not list sockets of the protocol.
        ToolError: it does not answer.
    """
    with opened() as diag:
        _send(diag, BY_FAMILY, _F_DUMP, request)
        while True:
            for kind, payload in _messages(diag):
                if kind in (_ERROR, _DONE):
                    _raise_for(payload)
                    return
                yield Record.unpack(payload)


def ask(diag: socket.socket, kind: int, request: DiagRequest) -> tuple[int, bytes]:
    """A question about one socket, or its end. Returns errno, or 0 and the payload of the answer."""
    _send(diag, kind, _F_ACK if kind == DESTROY else 0, request)
    answered, payload = next(_messages(diag))
    return (-_error(payload), b"") if answered == _ERROR else (0, payload)


def _send(diag: socket.socket, kind: int, flags: int, request: DiagRequest) -> None:
    data = request.pack()
    diag.send(_HEADER.pack(_HEADER.size + len(data), kind, flags | _F_REQUEST, 0, 0) + data)


def _messages(diag: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each message that comes next."""
    try:
        data = diag.recv(_BUFFER_BYTES)
    except TimeoutError as error:
        raise ToolError("sock_diag does not answer", hint=_HINT) from error
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) // 4 * 4


def _error(payload: bytes) -> int:
    """The negative errno in an error, or at the end of a dump."""
    return int(struct.unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0


def _raise_for(payload: bytes) -> None:
    error = -_error(payload)
    if error:
        raise OSError(error, os.strerror(error))
