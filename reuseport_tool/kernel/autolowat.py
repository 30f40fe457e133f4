"""The maps and programs of AutoLOWAT: what is compiled with what."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Self

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import bpf, bpffs, btf
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load_all
from reuseport_tool.models import Engine, FailOpens, Protocol

_STATE_SIZE = 4 * 2 + 2 * (4 * 5 + 16) + 4 * 11  # struct state of bpf/autolowat/autolowat.h
_SETTINGS = 2
_WORKING, _ANY_PORT = range(_SETTINGS)
_PORTS_MAX = 256
_TEXT = 1024
AGREED, OPTED_IN, FRAMES, SAVED, _FAIL_OPENS = range(5)
_DOUBTS = tuple(FailOpens.__dataclass_fields__)

_OFFSETS = {
    "OFF_COPIED_SEQ": ("tcp_sock", "copied_seq"),
    "OFF_RCV_NXT": ("tcp_sock", "rcv_nxt"),
    "OFF_RCV_WUP": ("tcp_sock", "rcv_wup"),
    "OFF_RCV_WND": ("tcp_sock", "rcv_wnd"),
    "OFF_ADVMSS": ("tcp_sock", "advmss"),
    "OFF_CB_FLAGS": ("tcp_sock", "bpf_sock_ops_cb_flags"),
    "OFF_BACKLOG_TAIL": ("sock", "sk_backlog.tail"),
    "OFF_SOCKET": ("sock", "sk_socket"),
    "OFF_FILE": ("socket", "file"),
    "OFF_FILE_FLAGS": ("file", "f_flags"),
    "OFF_RCVLOWAT": ("sock", "sk_rcvlowat"),
    "OFF_SOCK_OPS_SK": ("bpf_sock_ops_kern", "sk"),
    "OFF_SOCKOPT_SK": ("bpf_sockopt_kern", "sk"),
    "OFF_ULP": ("inet_connection_sock", "icsk_ulp_ops"),
}
_WALK_OFFSETS = {
    "OFF_STATE": ("sock_common", "skc_state"),
    "OFF_LOCAL_PORT": ("sock_common", "skc_num"),
    "OFF_SK_CGROUP": ("sock", "sk_cgrp_data.cgroup"),
    "OFF_CGROUP_NODE": ("cgroup", "kn"),
    "OFF_CGROUP_PARENT": ("cgroup", "self.parent"),
    "OFF_NODE_ID": ("kernfs_node", "id"),
}
_WRITE_HDR_OPT_CB_FLAG = 1 << 6
_SETSOCKOPT = (ProgramType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT)
_SOCK_OPS = (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS)
_PROGRAMS: Mapping[Engine, Mapping[str, tuple[ProgramType, AttachType]]] = {
    Engine.PAIRED: {
        "autolowat_paired": _SOCK_OPS,
        "autolowat_ingress": (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS),
        "autolowat_egress": (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS),
        "autolowat_sockopt": _SETSOCKOPT,
    },
    Engine.NATIVE: {"autolowat_native": _SOCK_OPS, "autolowat_sockopt": _SETSOCKOPT},
}
# What the native engine is compiled with, by the kernel's name of it
_HOOK = {"RCVQ_OP": "BPF_SOCK_OPS_RCVQ_CB", "RCVQ_FLAG": "BPF_SOCK_OPS_RCVQ_CB_FLAG"}
_KFUNCS = {"RCVLOWAT_ID": "bpf_sock_ops_tcp_set_rcvlowat", "CAST_ID": "bpf_cast_to_kern_ctx"}
_NATIVE_OFFSETS = {
    "OFF_SOCK_OPS_SKB": ("bpf_sock_ops_kern", "skb"),
    "OFF_SKB_CB": ("sk_buff", "cb"),
    "OFF_CB_SEQ": ("tcp_skb_cb", "seq"),
}


def missing_for_native() -> list[str]:
    """The names that this kernel would need for the native engine and does not have. Raises Unsupported (no BTF)."""
    missing = [name for name in _HOOK.values() if btf.enumerator(name) is None]
    for name in _KFUNCS.values():
        try:
            btf.function(name)
        except Unsupported:
            missing.append(f"{name}()")
    return missing


@dataclass(frozen=True, kw_only=True)
class Maps:
    """`sockets` by socket, `settings`, `counters` per CPU, `ports`, and `about`: a text for the next run."""

    sockets: bpf.Map
    settings: bpf.Map
    counters: bpf.Map
    ports: bpf.Map
    about: bpf.Map

    @classmethod
    def create(cls, stack: ExitStack, ports: Sequence[int], about: str) -> Self:
        """New maps, closed with the stack. No ports: any. The programs do nothing until set_working()."""
        array, entries = bpf.MapType.ARRAY, _FAIL_OPENS + len(_DOUBTS) + 1
        made = cls(
            sockets=bpf.Map.create_socket_storage("autolowat", _STATE_SIZE),
            settings=bpf.Map.create(array, "settings", max_entries=_SETTINGS),
            counters=bpf.Map.create(bpf.MapType.PERCPU_ARRAY, "counters", value_size=8, max_entries=entries),
            ports=bpf.Map.create(bpf.MapType.HASH, "ports", max_entries=_PORTS_MAX),
            about=bpf.Map.create(array, "about", value_size=_TEXT),
        )
        for entry in made.by_name().values():
            stack.enter_context(entry)
        for port in ports:
            made.ports.update_u32(port, 1)
        made.settings.update_u32(_ANY_PORT, int(not ports))
        made.about.update(0, about.encode().ljust(_TEXT, b"\0"))
        return made

    @classmethod
    def open(cls, stack: ExitStack, folder: Place) -> Self:
        """The maps pinned in a folder. Raises FileNotFoundError."""
        return cls(**{name: stack.enter_context(bpffs.open_map(folder / name)) for name in cls.__dataclass_fields__})

    def by_name(self) -> dict[str, bpf.Map]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def linked(self) -> dict[str, int]:
        """Their descriptors, by the constants that stand for them in the programs."""
        return {_constant(name): entry.fd for name, entry in self.by_name().items()}

    def text(self) -> str:
        return self.about.lookup(0).rstrip(b"\0").decode()

    def set_working(self, working: bool) -> None:
        self.settings.update_u32(_WORKING, int(working))

    def is_working(self) -> bool:
        return bool(self.settings.lookup_u32(_WORKING))

    def count(self, key: int) -> int:
        """A counter, summed over the processors."""
        return sum(value for (value,) in struct.iter_unpack("=Q", self.counters.lookup(key)))

    def fail_opens(self) -> FailOpens:
        return FailOpens(**{name: self.count(_FAIL_OPENS + 1 + doubt) for doubt, name in enumerate(_DOUBTS)})


def _constant(name: str) -> str:
    return f"{name.upper()}_FD"


def _source(name: str, defines: Mapping[str, int], kfuncs: Sequence[str] = ()) -> Source:
    return Source(
        path=bpf_dir() / "autolowat" / f"{name}.c",
        defines={"NONBLOCK": os.O_NONBLOCK, **btf.offsets(_OFFSETS), **defines},
        maps=tuple(map(_constant, Maps.__dataclass_fields__)),
        kfuncs=tuple(kfuncs),
    )


def source(engine: Engine, defines: Mapping[str, int]) -> Source:
    """The programs of an engine.

    Args:
        defines: of the framing, and what bpf/autolowat/<engine>.c wants besides.

    Raises:
        Unsupported: the kernel lacks what the engine needs.
    """
    if engine is not Engine.NATIVE:
        return _source(engine, defines)
    missing = missing_for_native()
    if missing:
        raise Unsupported(
            f"the engine native is not to be had: this kernel has no {', '.join(missing)}",
            hint="--engine paired works where both ends run it; vagrant/kernel/ builds a kernel with the hook",
        )
    numbers = {name: btf.enumerator(constant) or 0 for name, constant in _HOOK.items()}
    return _source(engine, {**numbers, **btf.offsets(_NATIVE_OFFSETS), **defines}, tuple(_KFUNCS))


def load(engine: Engine, maps: Maps, defines: Mapping[str, int]) -> dict[str, bpf.Program]:
    """Load the programs of an engine, by name.

    Args:
        defines: as for source().

    Raises:
        Unsupported, MissingCapability, ProgramRejected.
    """
    chosen, functions = source(engine, defines), _PROGRAMS[engine]
    kfuncs = {name: btf.function(_KFUNCS[name]) for name in chosen.kfuncs}
    programs = load_all(chosen, functions, maps=maps.linked(), kfuncs=kfuncs)
    return dict(zip(functions, programs, strict=True))


def attach(engine: Engine, programs: Mapping[str, bpf.Program], cgroup_fd: int) -> dict[str, bpf.Handle]:
    """Attach them to a cgroup. The links are the attachment: it ends with them."""
    with ExitStack() as stack:
        links = {
            name: stack.enter_context(bpf.attach_cgroup(programs[name], cgroup_fd, where))
            for name, (_, where) in _PROGRAMS[engine].items()
        }
        stack.pop_all()
        return links


class Followed(NamedTuple):
    """struct followed of bpf/autolowat/walk.c: one socket that a program follows or has followed."""

    armed: int
    lowat: int


def walk_source(cgroup_id: int, flags: int) -> Source:
    """The program of a Walk."""
    defines = {**btf.offsets(_WALK_OFFSETS), "CGROUP_ID": cgroup_id, "LISTENER_FLAGS": flags}
    return _source("walk", defines)


class Walk(Closing):
    """The iterator over the sockets of a cgroup's AutoLOWAT. A context manager; raises as BpfIterator.

    A walk goes over the sockets of the calling thread's network namespace, each of them locked. While AutoLOWAT is
    not working it gives every socket SO_RCVLOWAT 1.

    Args:
        listeners: also let those of the cgroup answer the option of the engine paired.
    """

    def __init__(self, engine: Engine, maps: Maps, cgroup_id: int, listeners: bool) -> None:
        flags = _WRITE_HDR_OPT_CB_FLAG if listeners and engine is Engine.PAIRED else 0
        self._iterator = BpfIterator(Protocol.TCP, walk_source(cgroup_id, flags), maps=maps.linked())

    def read(self) -> list[Followed]:
        return [Followed(*entry) for entry in struct.iter_unpack("=II", self._iterator.read())]

    def close(self) -> None:
        self._iterator.close()
