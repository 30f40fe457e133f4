"""A UDP socket that joins the group of another one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from reuseport_tool.kernel import libc
from reuseport_tool.kernel.sockets import borrowed

# include/uapi/linux/in.h and in6.h
_IP_FREEBIND, _IPV6_FREEBIND, _IPV6_TRANSPARENT = 15, 78, 75
_DEVICE_NAME = 16


def bound_beside(fd: int, uid: int) -> socket.socket:
    """A socket at the same address, port and device. Raises OSError.

    Args:
        uid: the owner of the other one: the kernel admits no other to a group (inet_rcv_saddr_equal() and callers).
    """
    with borrowed(fd) as like, _as_user(uid):
        made = socket.socket(like.family, like.type, like.proto)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _copy_options(like, made)
            made.bind(like.getsockname())
        except OSError:
            made.close()
            raise
    return made


@contextlib.contextmanager
def _as_user(uid: int) -> Iterator[None]:
    before = libc.set_fsuid(uid)
    try:
        yield
    finally:
        libc.set_fsuid(before)


def _copy_options(like: socket.socket, made: socket.socket) -> None:
    """What decides which datagrams reach a socket. An address may be bound that is not of this machine, or not yet."""
    is_ipv6 = like.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP
    made.setsockopt(level, _IPV6_FREEBIND if is_ipv6 else _IP_FREEBIND, 1)
    if is_ipv6:
        v6only = like.getsockopt(level, socket.IPV6_V6ONLY)
        made.setsockopt(level, socket.IPV6_V6ONLY, v6only)
    transparent = _IPV6_TRANSPARENT if is_ipv6 else socket.IP_TRANSPARENT
    if like.getsockopt(level, transparent):
        made.setsockopt(level, transparent, 1)
    device = like.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _DEVICE_NAME).rstrip(b"\0")
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
