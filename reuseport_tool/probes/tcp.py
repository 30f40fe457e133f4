"""What the kernel tells of sockets, ends of them, and takes with a SYN."""

from __future__ import annotations

import socket

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import btf, iterator, loopback, netns, resets, sockets, sysctl
from reuseport_tool.kernel.abi import ResetKind
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is
_TCPI_OPT_SYN_DATA = 32
# TFO_CLIENT_ENABLE, TFO_SERVER_ENABLE, TFO_CLIENT_NO_COOKIE, TFO_SERVER_COOKIE_NOT_REQD (include/net/tcp.h)
_FASTOPEN_WITHOUT_COOKIES = 0x1 | 0x2 | 0x4 | 0x200


def _tcp_iterator() -> str:
    with netns.throw_away(), loopback.listener(_PORT, backlog=7) as sock:
        cookie = sockets.cookie(sock.fileno())
        with iterator.TcpListeners() as listeners:
            found = listeners.read().listeners.get(cookie)
    if found is None or found.backlog != 7:
        raise Unsupported("the iterator did not show a listener with its backlog")
    return "showed a listener with its queue and backlog"


def _tcp_send_reset() -> str:
    with netns.throw_away(), resets.ResetCounter([_PORT]) as counter:
        with loopback.listener(_PORT) as sock:
            client = loopback.connect(_PORT)
            loopback.wait_queued(sock)
        client.close()
        found = [(row.kind, row.count) for row in counter.counts.rows()]
    if found != [(ResetKind.NEVER_ACCEPTED, 1)]:
        raise Unsupported(f"one connection was reset in an accept queue, and counted as {found}")
    refused = "refused SYNs, too" if resets.sees_packets_without_socket() else "refused SYNs are not seen"
    return f"counted the reset of a queued connection; {refused}"


def _sock_destroy() -> str:
    return f"BTF id {btf.function('bpf_sock_destroy')}"


def _fast_open() -> str:
    with netns.throw_away(), loopback.listener(_PORT) as sock:
        sysctl.write("net.ipv4.tcp_fastopen", str(_FASTOPEN_WITHOUT_COOKIES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1)
        with socket.socket() as client:
            client.sendto(b"x", socket.MSG_FASTOPEN, sock.getsockname())
            loopback.wait_queued(sock)
            with sock.accept()[0] as accepted:
                options = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
    if not options & _TCPI_OPT_SYN_DATA:
        raise Unsupported("data in a SYN was not accepted")
    return "took data from a SYN"


PROBES = (
    Probe(name="TCP iterator", since="5.9", needs=("CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"), run=_tcp_iterator),
    Probe(name="tcp_send_reset", since="4.16", needs=("CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"), run=_tcp_send_reset),
    Probe(name="bpf_sock_destroy", since="6.5", run=_sock_destroy),
    Probe(name="TCP Fast Open server", since="3.7", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_fast_open),
)
