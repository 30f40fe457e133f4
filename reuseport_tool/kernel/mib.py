"""The kernel's TCP counters of a network namespace."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class TcpCounters:
    """Some of TcpExt in /proc/net/netstat, and OutRsts (segments sent with RST) of Tcp in /proc/net/snmp.

    A counter that this kernel does not have reads as 0.
    """

    TCPMigrateReqSuccess: int
    TCPMigrateReqFailure: int
    ListenDrops: int
    ListenOverflows: int
    TCPAbortOnClose: int
    OutRsts: int

    def since(self, earlier: TcpCounters) -> TcpCounters:
        return TcpCounters(**{name: getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__})


def read() -> TcpCounters:
    """The counters of the calling thread's namespace."""
    values = _values("netstat", "TcpExt:") | _values("snmp", "Tcp:")
    return TcpCounters(**{name: int(values.get(name, 0)) for name in TcpCounters.__dataclass_fields__})


def _values(file: str, section: str) -> dict[str, str]:
    with open(f"/proc/thread-self/net/{file}") as lines:
        names, values = (line.split()[1:] for line in lines if line.split(maxsplit=1)[0] == section)
    return dict(zip(names, values, strict=True))
