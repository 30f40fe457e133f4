"""A socket as the model shows it, made of what the kernel's record says."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from reuseport_tool.kernel import links, processes
from reuseport_tool.kernel.abi import NO_IDLE, SocketRecord, TcpState
from reuseport_tool.kernel.socket_iterator import jiffies_per_second
from reuseport_tool.models import Protocol, Socket, SocketState

NUMBERS: dict[SocketState, int] = {
    name: TcpState[name.name] for name in SocketState if name is not SocketState.UNCONNECTED
}
NUMBERS[SocketState.UNCONNECTED] = TcpState.CLOSE
_NAMES: dict[Protocol, dict[int, str]] = {
    Protocol.TCP: {NUMBERS[name]: str(name) for name in SocketState if name is not SocketState.UNCONNECTED},
    Protocol.UDP: {TcpState.ESTABLISHED: str(SocketState.ESTABLISHED), TcpState.CLOSE: str(SocketState.UNCONNECTED)},
}


@dataclass(frozen=True)
class Moment:
    """The moment to which ages are told."""

    monotonic_us: float
    hertz: int

    @classmethod
    def take(cls) -> Moment:
        return cls(time.monotonic_ns() / 1000, jiffies_per_second())

    def idle_s(self, raw: SocketRecord) -> float | None:
        return None if raw.idle == NO_IDLE else round(raw.idle / self.hertz, 3)

    def age_s(self, raw: SocketRecord) -> float | None:
        return round((self.monotonic_us - raw.synack_us) / 1e6, 3) if raw.synack_us else None

    def at_least_s(self, raw: SocketRecord) -> float | None:
        """A lower bound of the age: data that came and went a while ago had a socket then."""
        age_s = self.age_s(raw)
        return self.idle_s(raw) if age_s is None else age_s


class Owners:
    """Who holds which socket, found by one walk."""

    def __init__(self, inodes: Iterable[int]) -> None:
        found = processes.holders({inode for inode in inodes if inode})
        # Most sockets have one holder, and a process has many sockets.
        alone = cache(lambda pid: frozenset((pid,)))
        self._pids = {
            inode: alone(holders[0].pid) if len(holders) == 1 else frozenset(holder.pid for holder in holders)
            for inode, holders in found.items()
            if holders
        }
        self._topmost = cache(lambda pids: next(iter(processes.topmost(pids)), None))
        self.command = cache(processes.command)

    def pids(self, inode: int) -> frozenset[int]:
        return self._pids.get(inode, _NOBODY)

    def one_holds(self, pids: Collection[int], inode: int) -> bool:
        """Whether one of `pids` holds it; so for no pids."""
        return not pids or not self.pids(inode).isdisjoint(pids)

    def topmost(self, inode: int) -> int | None:
        pids = self.pids(inode)
        return self._topmost(pids) if pids else None


_LISTEN = int(TcpState.LISTEN)  # a comparison with a member of an enum takes longer than all else of a row
_WITHOUT_QUEUES = (int(TcpState.TIME_WAIT), int(TcpState.NEW_SYN_RECV))
_NOBODY: frozenset[int] = frozenset()


def show(protocol: Protocol, raw: SocketRecord, owners: Owners, generation: int | None, now: Moment) -> Socket:
    pid = owners.topmost(raw.inode) if raw.inode else None
    listens = raw.state == _LISTEN
    has_queues = not listens and raw.state not in _WITHOUT_QUEUES
    return Socket(
        protocol=protocol.value,
        state=_NAMES[protocol].get(raw.state, str(raw.state)),
        local=_address(raw.family, raw.local, raw.local_port, raw.device),
        remote=_address(raw.family, raw.remote, socket.ntohs(raw.remote_port), 0) if raw.remote_port else None,
        cookie=raw.cookie,
        pid=pid,
        command=owners.command(pid) if pid is not None else None,
        uid=raw.uid,
        inode=raw.inode or None,
        age_s=now.age_s(raw),
        idle_s=now.idle_s(raw),
        receive_queue=raw.receive_queue if has_queues else None,
        send_queue=raw.send_queue if has_queues else None,
        accept_queue=raw.receive_queue if listens else None,
        backlog=raw.send_queue if listens else None,
        generation=generation,
    )


def _address(family: int, address: bytes, port: int, device: int) -> str:
    return f"{_host(family, address, device)}:{port}"


@lru_cache(maxsize=1 << 16)
def _host(family: int, address: bytes, device: int) -> str:
    if family == socket.AF_INET6:
        return f"[{socket.inet_ntop(family, address)}{_device(device)}]"
    return socket.inet_ntop(family, address[:4]) + _device(device)


def _device(index: int) -> str:
    if not index:
        return ""
    name = links.device_name(index)
    return f"%{name}" if name else ""
