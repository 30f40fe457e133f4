"""Socket options, by file descriptor: identity, group membership, the group's program."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator

from reuseport_tool.errors import NotFound, Unsupported
from reuseport_tool.kernel import bpf
from reuseport_tool.record import record

# include/uapi/asm-generic/socket.h and include/uapi/linux/tcp.h
SO_ATTACH_REUSEPORT_CBPF = 51
SO_ATTACH_REUSEPORT_EBPF = 52
SO_COOKIE = 57
SO_DETACH_REUSEPORT_BPF = 68
TCP_SAVE_SYN = 27

# struct sock_filter and struct sock_fprog of include/uapi/linux/filter.h
_FILTER, _PROGRAM, _BPF_RET = struct.Struct("=HBBI"), struct.Struct("HxxxxxxP"), 0x06


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """The fd as a socket object that does not own it."""
    wrapped = socket.socket(fileno=fd)
    try:
        yield wrapped
    finally:
        wrapped.detach()


def cookie(fd: int) -> int:
    """SO_COOKIE: unique per socket until reboot, and it never changes."""
    with borrowed(fd) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def is_reuseport(fd: int) -> bool:
    with borrowed(fd) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def attach_program(fd: int, program: bpf.Program) -> None:
    """SO_ATTACH_REUSEPORT_EBPF: the program decides for the whole group of this socket from now on."""
    _group_option(fd, SO_ATTACH_REUSEPORT_EBPF, program.fd, "attaching a program to a group")


def attach_filter(fd: int, index: int) -> None:
    """SO_ATTACH_REUSEPORT_CBPF: a classic BPF filter that always chooses socks[index], as servers attach them."""
    code = ctypes.create_string_buffer(_FILTER.pack(_BPF_RET, 0, 0, index), _FILTER.size)
    with borrowed(fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, _PROGRAM.pack(1, ctypes.addressof(code)))


def detach_program(fd: int) -> None:
    """SO_DETACH_REUSEPORT_BPF (Linux 5.3). Raises NotFound when the group has no program."""
    try:
        _group_option(fd, SO_DETACH_REUSEPORT_BPF, 0, "detaching the program of a group")
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotFound("the group has no program", hint="'status' shows the programs of all groups") from error
        raise Unsupported("the kernel cannot detach a reuseport program", hint="it came with Linux 5.3") from error


def _group_option(fd: int, option: int, value: int, doing: str) -> None:
    with borrowed(fd) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOPROTOOPT):
                raise
            raise bpf.translate(error, doing) from error


@record
class ListenerOptions:
    """The options of a listener that its connections inherit, or that migration depends on.

    A connection inherits from the listener that got its SYN, so after a migration it carries the old
    listener's options. Sizes in bytes, `defer_accept` in seconds; None where the kernel refused.
    """

    save_syn: int | None
    fastopen: int | None
    defer_accept: int | None
    receive_buffer: int | None
    send_buffer: int | None
    maximum_segment: int | None
    no_delay: int | None
    keepalive: int | None
    congestion: str | None
    mark: int | None
    transparent: int | None


_INT_OPTIONS = {
    "save_syn": (socket.IPPROTO_TCP, TCP_SAVE_SYN),
    "fastopen": (socket.IPPROTO_TCP, socket.TCP_FASTOPEN),
    "defer_accept": (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
    "receive_buffer": (socket.SOL_SOCKET, socket.SO_RCVBUF),
    "send_buffer": (socket.SOL_SOCKET, socket.SO_SNDBUF),
    "maximum_segment": (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
    "no_delay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "mark": (socket.SOL_SOCKET, socket.SO_MARK),
    "transparent": (socket.IPPROTO_IP, socket.IP_TRANSPARENT),
}


def listener_options(fd: int) -> ListenerOptions:
    with borrowed(fd) as sock:
        values = {name: _int_option(sock, *option) for name, option in _INT_OPTIONS.items()}
        try:
            congestion = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
        except OSError:
            congestion = None
        return ListenerOptions(congestion=congestion, **values)


def _int_option(sock: socket.socket, level: int, option: int) -> int | None:
    try:
        return sock.getsockopt(level, option)
    except OSError:
        return None
