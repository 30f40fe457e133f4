"""The kernel's TCP counters of a network namespace."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TcpCounters:
    """Some of TcpExt in /proc/net/netstat. A counter that this kernel does not have reads as 0."""

    TCPMigrateReqSuccess: int = 0
    TCPMigrateReqFailure: int = 0
    ListenDrops: int = 0
    ListenOverflows: int = 0
    TCPAbortOnClose: int = 0

    def since(self, earlier: TcpCounters) -> TcpCounters:
        return TcpCounters(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))


def read() -> TcpCounters:
    """The counters of the calling thread's namespace."""
    with open("/proc/thread-self/net/netstat") as file:
        lines = [line.split() for line in file if line.startswith("TcpExt:")]
    values = dict(zip(lines[0][1:], lines[1][1:], strict=True))
    return TcpCounters(*(int(values.get(name, 0)) for name in TcpCounters.__dataclass_fields__))
