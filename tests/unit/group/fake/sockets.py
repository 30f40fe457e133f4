"""The sockets of a kernel in memory: listed, copied, and with programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from reuseport_tool.errors import MissingCapability, NotFound
from reuseport_tool.kernel import bpf
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.iterator import ListenerInfo, MemberInfo, UdpInfo
from reuseport_tool.models import Protocol
from tests.unit.group.fake.kernel import Kernel


def udp_info(common: dict[str, Any]) -> UdpInfo:
    return UdpInfo(
        **common,
        is_connected=False,
        local=b"\x7f\0\0\1",
        local_port=53,
        remote=bytes(4),
        remote_port=0,
        receive_queue=7,
        send_queue=0,
        drops=3,
    )


class Sockets:
    """In the place of functions that list sockets, copy descriptors, and attach programs."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def bound(self, protocol: Protocol, port: int = 0, address: str | None = None) -> list[BoundSocket]:
        is_tcp = protocol is Protocol.TCP
        return [
            BoundSocket(
                endpoint=sock.endpoint,
                cookie=sock.cookie,
                inode=sock.cookie + 1,
                uid=0,
                accept_queue=sock.queue if is_tcp else None,
                backlog=128 if is_tcp else None,
                mptcp=sock.mptcp,
            )
            for sock in self._kernel.socks.values()
            if sock.endpoint.protocol is protocol
            and port in (0, sock.endpoint.port)
            and address in (None, sock.endpoint.address)
        ]

    def take_fd(self, pid: int, fd: int) -> int:
        if fd not in self._kernel.socks or self._kernel.socks[fd].pid != pid:
            raise NotFound("gone")
        copy = os.open(os.devnull, os.O_RDONLY)
        self._kernel.copies[copy] = self._kernel.socks[fd]
        return copy

    def attach(self, fd: int, attached: bpf.Program) -> None:
        self._kernel.change("attach")
        sock = self._kernel.copies[fd]
        self._kernel.running[sock.endpoint, sock.part] = self._kernel.fds[attached.fd].id

    def detach(self, fd: int) -> None:
        self._kernel.change("detach")
        sock = self._kernel.copies[fd]
        if self._kernel.running.pop((sock.endpoint, sock.part), None) is None:
            raise NotFound("the group has no program")

    def infos(self, protocol: Protocol) -> dict[int, MemberInfo]:
        found: dict[int, MemberInfo] = {}
        for sock in self._kernel.socks.values():
            if sock.endpoint.protocol is protocol:
                group = [o for o in self._kernel.socks.values() if (o.endpoint, o.part) == (sock.endpoint, sock.part)]
                common: dict[str, Any] = {
                    "cookie": sock.cookie,
                    "group": hash((sock.endpoint, sock.part)) & 0xFFFF | 1 if sock.reuseport else 0,
                    "program_id": self._kernel.running.get((sock.endpoint, sock.part)),
                    "index": group.index(sock),
                    "group_size": len(group),
                }
                if protocol is Protocol.TCP:
                    found[sock.cookie] = ListenerInfo(**common, accept_queue=sock.queue, backlog=128, half_open=2)
                else:
                    found[sock.cookie] = udp_info(common)
        return found

    @contextlib.contextmanager
    def listeners_of(self, protocol: Protocol, *, ordered: bool = True) -> Iterator[Any]:
        if not self._kernel.may_iterate:
            raise MissingCapability("no CAP_PERFMON")
        yield SimpleNamespace(listeners=lambda wanted=None: self.infos(protocol)) if self._kernel.tells else None
