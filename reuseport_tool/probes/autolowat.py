"""The engines of AutoLOWAT."""

from __future__ import annotations

import functools
import os
import select
import socket
from contextlib import ExitStack

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import autolowat, cgroup, loopback, netns
from reuseport_tool.models import Engine
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is
# Four bytes that say how many follow; few frames in a segment, which the verifier is quick with.
_PROBE_FRAMING = {
    "FRAMING_KIND": 0,
    "FRAMING_OFFSET": 0,
    "FRAMING_WIDTH": 4,
    "FRAMING_BIG": 1,
    "FRAMING_ADD": 4,
    "FRAMING_HEADER": 4,
    "FRAMING_MAX": 100,
    "FRAMES_MAX": 4,
    "ARM_ACTIVE": 1,
}


def _autolowat(engine: Engine) -> str:
    with netns.throw_away(), cgroup.throw_away() as folder, ExitStack() as stack:
        maps = autolowat.EngineMaps.create(stack, engine, [_PORT], "")
        fd = cgroup.open_folder(folder)
        stack.callback(os.close, fd)
        stack.enter_context(autolowat.attached(engine, maps, _PROBE_FRAMING, fd, stack))
        maps.set_working(True)
        lowat = _lowat_of_a_begun_frame()
    if lowat != 4 + 7:
        raise Unsupported(f"the programs run, and SO_RCVLOWAT is {lowat} instead of {4 + 7}")
    return "SO_RCVLOWAT was the length of a frame that had begun"


def _lowat_of_a_begun_frame() -> int:
    with loopback.listener(_PORT) as listening, loopback.connect(_PORT) as client, select.epoll() as waiting:
        loopback.wait_queued(listening)
        with listening.accept()[0] as server:
            server.setblocking(False)
            waiting.register(server, select.EPOLLIN)
            client.sendall(b"\0\0\0\7x")
            loopback.wait_received(server, 5)
            return server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


_NEEDS = ("CAP_SYS_ADMIN", "CAP_BPF", "CAP_NET_ADMIN")
PROBES = (
    Probe(name="AutoLOWAT solo", since="5.10", needs=_NEEDS, run=functools.partial(_autolowat, Engine.SOLO)),
    # Not in a release: vagrant/kernel/ has the patch.
    Probe(name="AutoLOWAT native", since=None, needs=_NEEDS, run=functools.partial(_autolowat, Engine.NATIVE)),
)
