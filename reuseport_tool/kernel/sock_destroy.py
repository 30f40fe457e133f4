"""Ending sockets of other processes: bpf_sock_destroy() inside an iterator, and SOCK_DESTROY of sock_diag."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel import bpf, btf, capabilities, sock_diag
from reuseport_tool.kernel.abi import OUTCOME, TARGET, SocketRecord, TcpState
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.program import Source, bpf_dir
from reuseport_tool.kernel.socket_iterator import tuple_offsets
from reuseport_tool.models import Protocol

Outcomes = dict[int, int]
"""By cookie 0, or a positive errno. A socket that did not match any more is not in it."""

_LOOK_UPS_MAX = 8192


def kfunc() -> int | None:
    """The BTF id of bpf_sock_destroy() (Linux 6.5), None where the kernel has none or tells nothing."""
    try:
        return btf.function("bpf_sock_destroy")
    except Unsupported:
        return None


def source(protocol: Protocol) -> Source:
    """The program of by_bpf()."""
    path = bpf_dir() / "sockets" / f"{protocol}_destroy.c"
    return Source(path=path, defines=tuple_offsets(), maps=("TARGETS_FD",), kfuncs=("KFUNC_ID",))


def end(protocol: Protocol, targets: Sequence[SocketRecord], states: int) -> Outcomes:
    """End the targets as by_bpf() does, or as by_netlink() where the kernel has no bpf_sock_destroy()."""
    return (by_netlink if kfunc() is None else by_bpf)(protocol, targets, states)


def by_bpf(protocol: Protocol, targets: Sequence[SocketRecord], states: int) -> Outcomes:
    """End the targets in one walk over the sockets of the calling thread's network namespace.

    Args:
        states: those that a socket may have by now, a mask of 1 << state.

    Raises:
        Unsupported: no bpf_sock_destroy(), or no iterator over this protocol.
        MissingCapability, ProgramRejected: from loading.
    """
    number = kfunc()
    if number is None:
        raise Unsupported("the kernel has no bpf_sock_destroy()", hint="it came with Linux 6.5")
    with bpf.Map.create(
        bpf.MapType.HASH, "targets", key_size=8, value_size=TARGET.size, max_entries=max(len(targets), 1)
    ) as chosen:
        for target in targets:
            chosen.update(target.cookie, target.as_target(states))
        values = {"TARGETS_FD": chosen.fd, "KFUNC_ID": number}
        with BpfIterator(protocol, source(protocol), values) as iterator:
            written = iterator.read()
    return {cookie: -error for cookie, error, _ in OUTCOME.iter_unpack(written)}


def by_netlink(protocol: Protocol, targets: Iterable[SocketRecord], states: int) -> Outcomes:
    """End the targets one by one, by sock_diag's SOCK_DESTROY (Linux 4.5).

    The kernel looks a socket up by its tuple and compares the cookie (inet_diag_find_one_icsk()). The
    state it does not compare: that is asked for just before. Among the listeners of a SO_REUSEPORT group the look-up
    chooses by a hash of the remote end, so remote ports are tried until it finds the target. A socket that is not found
    is not ended, and is not among the outcomes.

    Raises:
        MissingCapability: CAP_NET_ADMIN is needed.
        Unsupported: no CONFIG_INET_DIAG_DESTROY.
    """
    outcomes: Outcomes = {}
    with sock_diag.opened() as diag:
        for target in targets:
            for found in _look_ups(target):
                state = _state(diag, protocol, found)
                if state is not None:
                    if states >> state & 1:
                        outcomes[target.cookie] = _checked(_destroy(diag, protocol, found))
                    break
    return outcomes


def _look_ups(target: SocketRecord) -> Iterator[SocketRecord]:
    """The target with the remote ends by which a look-up may find it."""
    yield target
    if target.state == TcpState.LISTEN:
        for port in range(1, _LOOK_UPS_MAX):
            yield target._replace(remote_port=port)


def _checked(error: int) -> int:
    if error in (errno.EPERM, errno.EACCES):
        raise MissingCapability("ending a socket is not permitted", hint=capabilities.hint("CAP_NET_ADMIN"))
    if error == errno.EOPNOTSUPP:
        raise Unsupported("the kernel does not end sockets for sock_diag", hint="it needs CONFIG_INET_DIAG_DESTROY")
    return error


def _state(diag: socket.socket, protocol: Protocol, target: SocketRecord) -> int | None:
    """The socket's state by now, None when none with this tuple and cookie is found.

    A look-up of one UDP socket wants source and destination swapped, "for historical reasons"
    (net/ipv4/udp_diag.c, udp_dump_one()), the destruction of one does not.
    """
    local, remote = _ends(target)
    source, destination = (remote, local) if protocol is Protocol.UDP else (local, remote)
    error, payload = sock_diag.ask(diag, sock_diag.BY_FAMILY, _request(protocol, target, source, destination))
    return None if error else sock_diag.Record.unpack(payload).state


def _destroy(diag: socket.socket, protocol: Protocol, target: SocketRecord) -> int:
    """The errno of SOCK_DESTROY, or 0."""
    return sock_diag.ask(diag, sock_diag.DESTROY, _request(protocol, target, *_ends(target)))[0]


_End = tuple[bytes, bytes]


def _ends(target: SocketRecord) -> tuple[_End, _End]:
    """Port and address of both ends, in network order."""
    remote_port = target.remote_port.to_bytes(2, sys.byteorder)
    return (target.local_port.to_bytes(2, "big"), target.local), (remote_port, target.remote)


def _request(protocol: Protocol, target: SocketRecord, source: _End, destination: _End) -> sock_diag.DiagRequest:
    return sock_diag.DiagRequest(
        protocol=protocol,
        family=target.family,
        source=source,
        destination=destination,
        device=target.device,
        cookie=target.cookie,
    )


def reason(error: int) -> str:
    """What an outcome other than 0 means."""
    return os.strerror(error)
