"""Sockets as the model shows them, made of what the kernel's records say."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

from reuseport_tool.kernel import links, processes
from reuseport_tool.kernel.abi import NO_IDLE, SocketRecord, TcpState
from reuseport_tool.kernel.socket_iterator import jiffies_per_second
from reuseport_tool.models import Protocol, SocketState, SocketTable

NUMBERS: dict[SocketState, int] = {
    name: TcpState[name.name] for name in SocketState if name is not SocketState.UNCONNECTED
}
NUMBERS[SocketState.UNCONNECTED] = TcpState.CLOSE
_NAMES: dict[Protocol, dict[int, str]] = {
    Protocol.TCP: {NUMBERS[name]: str(name) for name in SocketState if name is not SocketState.UNCONNECTED},
    Protocol.UDP: {TcpState.ESTABLISHED: str(SocketState.ESTABLISHED), TcpState.CLOSE: str(SocketState.UNCONNECTED)},
}
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Moment:
    """The moment to which ages are told."""

    monotonic_us: float
    hertz: int

    @classmethod
    def take(cls) -> Moment:
        return cls(time.monotonic_ns() / 1000, jiffies_per_second())

    def idle_s(self, jiffies: int) -> float | None:
        return None if jiffies == NO_IDLE else round(jiffies / self.hertz, 3)

    def age_s(self, since_us: int) -> float | None:
        return round((self.monotonic_us - since_us) / 1e6, 3) if since_us else None

    def at_least_s(self, raw: SocketRecord) -> float | None:
        """A lower bound of the age: data that came and went a while ago had a socket then."""
        age_s = self.age_s(raw.synack_us)
        return self.idle_s(raw.idle) if age_s is None else age_s


class SocketOwners:
    """Who holds which socket, found by one walk."""

    def __init__(self) -> None:
        self._pids = processes.pids_by_inode()
        masters = processes.Masters()
        self._topmost = cache(lambda pids: next(iter(masters.topmost(pids)), None))
        self.command = cache(processes.command)

    def pids(self, inode: int) -> frozenset[int]:
        return self._pids.get(inode, _NOBODY)

    def one_holds(self, pids: Collection[int], inode: int) -> bool:
        """Whether one of `pids` holds it; so for no pids."""
        return not pids or not self.pids(inode).isdisjoint(pids)

    def topmost(self, inodes: Iterable[int]) -> list[int | None]:
        """Of each inode; None for inode 0, which is that of no descriptor."""
        return _mapped(lambda pids: self._topmost(pids) if pids else None, [self._pids.get(inode) for inode in inodes])


_LISTEN = int(TcpState.LISTEN)  # a comparison with a member of an enum takes longer than all else of a row
_WITHOUT_QUEUES = (_LISTEN, int(TcpState.TIME_WAIT), int(TcpState.NEW_SYN_RECV))
_NOBODY: frozenset[int] = frozenset()
_NOTHING: dict[str, tuple[Any, ...]] = dict.fromkeys(SocketRecord._fields, ())
_NTOHS = socket.ntohs


def show(
    protocol: Protocol,
    raws: Sequence[SocketRecord],
    owners: SocketOwners,
    generations: Sequence[int | None],
    now: Moment,
) -> SocketTable:
    """What the records say, and the generation of each."""
    of = dict(zip(SocketRecord._fields, zip(*raws, strict=True), strict=True)) if raws else _NOTHING
    names, states = _NAMES[protocol], of["state"]
    pids = owners.topmost(of["inode"])
    with_queues = [state not in _WITHOUT_QUEUES for state in states]
    return SocketTable(
        {
            "protocol": [protocol.value] * len(raws),
            "state": [names.get(state) or str(state) for state in states],
            "local": _addresses(of["family"], of["local"], of["local_port"], of["device"]),
            "remote": [
                f"{_host(family, address, 0)}:{_NTOHS(port)}" if port else None
                for family, address, port in zip(of["family"], of["remote"], of["remote_port"], strict=True)
            ],
            "cookie": of["cookie"],
            "pid": pids,
            "command": _mapped(lambda pid: None if pid is None else owners.command(pid), pids),
            "uid": of["uid"],
            "inode": [inode or None for inode in of["inode"]],
            "age_s": [now.age_s(sent_us) if sent_us else None for sent_us in of["synack_us"]],
            "idle_s": _mapped(now.idle_s, of["idle"]),
            "receive_queue": _where(with_queues, of["receive_queue"]),
            "send_queue": _where(with_queues, of["send_queue"]),
            "accept_queue": _where([state == _LISTEN for state in states], of["receive_queue"]),
            "backlog": _where([state == _LISTEN for state in states], of["send_queue"]),
            "generation": generations,
        }
    )


def _mapped(function: Callable[[_T], _R], values: Sequence[_T]) -> list[_R]:
    """As map(), with one call for all values that are equal, of which there are many."""
    made = {value: function(value) for value in set(values)}
    return [made[value] for value in values]


def _where(wanted: Iterable[bool], column: Iterable[int]) -> list[int | None]:
    return [value if known else None for known, value in zip(wanted, column, strict=True)]


def _addresses(
    families: Iterable[int], addresses: Iterable[bytes], ports: Iterable[int], devices: Iterable[int]
) -> list[str]:
    return [
        f"{_host(family, address, device)}:{port}"
        for family, address, port, device in zip(families, addresses, ports, devices, strict=True)
    ]


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
