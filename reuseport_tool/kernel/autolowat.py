"""The maps and programs of AutoLOWAT."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from reuseport_tool.kernel import bpf, btf
from reuseport_tool.kernel.program import AttachType, ProgramType, bpf_dir, load_all

_STATE_SIZE = 4 * 2 + 4 * 5 + 16 + 4 * 7  # struct state of bpf/autolowat.h
_COUNTERS = 16
_SETTINGS = 2
_PORTS_MAX = 256
WORKING, ANY_PORT = range(2)

_OFFSETS = {
    "OFF_COPIED_SEQ": ("tcp_sock", "copied_seq"),
    "OFF_RCV_NXT": ("tcp_sock", "rcv_nxt"),
    "OFF_RCV_WUP": ("tcp_sock", "rcv_wup"),
    "OFF_RCV_WND": ("tcp_sock", "rcv_wnd"),
    "OFF_ADVMSS": ("tcp_sock", "advmss"),
    "OFF_BACKLOG_TAIL": ("sock", "sk_backlog.tail"),
    "OFF_RCVLOWAT": ("sock", "sk_rcvlowat"),
    "OFF_SOCK_OPS_SK": ("bpf_sock_ops_kern", "sk"),
    "OFF_SOCKOPT_SK": ("bpf_sockopt_kern", "sk"),
    "OFF_SKB_SK": ("sk_buff", "sk"),
    "OFF_ULP": ("inet_connection_sock", "icsk_ulp_ops"),
}


class Maps:
    """`sockets` by socket, `settings`, `counters` per CPU, `ports`."""

    def __init__(self, sockets: bpf.Map, settings: bpf.Map, counters: bpf.Map, ports: bpf.Map) -> None:
        self.sockets, self.settings, self.counters, self.ports = sockets, settings, counters, ports

    @classmethod
    def create(cls, stack: ExitStack, ports: Sequence[int]) -> Self:
        """New maps, closed with the stack. No ports: any."""
        made = cls(
            stack.enter_context(bpf.Map.create_socket_storage("autolowat", _STATE_SIZE)),
            stack.enter_context(bpf.Map.create(bpf.MapType.ARRAY, "settings", max_entries=_SETTINGS)),
            stack.enter_context(
                bpf.Map.create(bpf.MapType.PERCPU_ARRAY, "counters", value_size=8, max_entries=_COUNTERS)
            ),
            stack.enter_context(bpf.Map.create(bpf.MapType.HASH, "ports", max_entries=_PORTS_MAX)),
        )
        for port in ports:
            made.ports.update_u32(port, 1)
        made.settings.update_u32(ANY_PORT, int(not ports))
        return made

    def defines(self) -> dict[str, int]:
        return {
            "SOCKETS_FD": self.sockets.fd,
            "SETTINGS_FD": self.settings.fd,
            "COUNTERS_FD": self.counters.fd,
            "PORTS_FD": self.ports.fd,
            **{name: btf.offset(*field) for name, field in _OFFSETS.items()},
        }

    def counts(self) -> list[int]:
        """Every counter, summed over the processors."""
        return [sum(value for (value,) in struct.iter_unpack("=Q", self.counters.lookup(key))) for key in range(_COUNTERS)]


PAIRED = {
    "autolowat_paired": (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "autolowat_ingress": (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS),
    "autolowat_sockopt": (ProgramType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
}


def load_paired(maps: Maps, defines: Mapping[str, int]) -> dict[str, bpf.Program]:
    """Load the programs of the paired engine, by name."""
    programs = load_all(bpf_dir() / "autolowat_paired.c", PAIRED, {**maps.defines(), **defines})
    return dict(zip(PAIRED, programs, strict=True))
