"""Network namespaces and the links in them."""

from __future__ import annotations

import socket

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import links, loopback, netns
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is


def _network_namespace() -> str:
    before = netns.identity()
    with netns.throw_away():
        if netns.identity() == before:
            raise Unsupported("unshare(2) made no new namespace")
        with loopback.listener(_PORT) as sock, loopback.connect(_PORT):
            loopback.wait_queued(sock)
    return "made one, connected over its loopback"


def _veth() -> str:
    with netns.throw_away():
        links.veth("probe0", "probe1")
        names = [name for _, name in socket.if_nameindex()]
        if "probe1" not in names:
            raise Unsupported("the pair was not made")
    return "made a pair"


PROBES = (
    Probe(name="network namespace", since="2.6.29", needs=("CAP_SYS_ADMIN",), run=_network_namespace),
    Probe(name="veth", since="2.6.29", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_veth),
)
