"""The maps and programs of AutoLOWAT: what is compiled with what."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Self

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ProgramRejected, Unsupported
from reuseport_tool.kernel import bpf, bpffs, btf, netns, tc
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load_all
from reuseport_tool.models import Engine, FailOpens, Protocol
from reuseport_tool.record import record

_STREAM_SIZE = 4 * 9 + 16  # struct stream of bpf/autolowat/framing.h
_STATE_SIZE = _STREAM_SIZE + 4 * 2  # struct state of bpf/autolowat/native.h
_KEY_SIZE, _FLOW_SIZE = 4 * 9, 4 * 2 + _STREAM_SIZE + 4 * 9 + 8  # struct key and struct flow of bpf/autolowat/solo.h
# A size that differs does not compile.
_SIZES = {"SIZEOF_STATE": _STATE_SIZE, "SIZEOF_KEY": _KEY_SIZE, "SIZEOF_FLOW": _FLOW_SIZE}
_FLOWS_MAX = 1 << 18
_SETTINGS = 3
_WORKING, _NETNS, _ARM_PORTS = range(_SETTINGS)
_PORTS, _PORTS_IN_WORD = 1 << 16, 64
_TEXT = 1 << 14
OPTED_IN, FRAMES, SAVED, MARKS, _FAIL_OPENS = range(5)
_DOUBTS = tuple(FailOpens.__dataclass_fields__)

_OFFSETS = {
    "OFF_COPIED_SEQ": "tcp_sock.copied_seq",
    "OFF_RCV_NXT": "tcp_sock.rcv_nxt",
    "OFF_RCV_WUP": "tcp_sock.rcv_wup",
    "OFF_RCV_WND": "tcp_sock.rcv_wnd",
    "OFF_ADVMSS": "tcp_sock.advmss",
    "OFF_CB_FLAGS": "tcp_sock.bpf_sock_ops_cb_flags",
    "OFF_BACKLOG_TAIL": "sock.sk_backlog.tail",
    "OFF_SOCKET": "sock.sk_socket",
    "OFF_FILE": "socket.file",
    "OFF_FILE_FLAGS": "file.f_flags",
    "OFF_RCVLOWAT": "sock.sk_rcvlowat",
    "OFF_SOCK_OPS_SK": "bpf_sock_ops_kern.sk",
    "OFF_SOCKOPT_SK": "bpf_sockopt_kern.sk",
    "OFF_ULP": "inet_connection_sock.icsk_ulp_ops",
    "OFF_FAMILY": "sock_common.skc_family",
    "OFF_LOCAL_PORT": "sock_common.skc_num",
    "OFF_REMOTE_PORT": "sock_common.skc_dport",
    "OFF_LOCAL4": "sock_common.skc_rcv_saddr",
    "OFF_REMOTE4": "sock_common.skc_daddr",
    "OFF_NET": "sock_common.skc_net",
    "OFF_NET_INODE": "net.ns.inum",
    "OFF_ECN_FLAGS": "tcp_sock.ecn_flags",
    "OFF_HEADER_LEN": "tcp_sock.tcp_header_len",
    "OFF_USER_DATA": "sock.sk_user_data",
    "OFF_WAIT_QUEUE": "sock.sk_wq",
    "OFF_STATE": "sock_common.skc_state",
}
_SETSOCKOPT = (ProgramType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT)
_SOCK_OPS = (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS)
_PROGRAMS: Mapping[Engine, Mapping[str, tuple[ProgramType, AttachType]]] = {
    Engine.SOLO: {"autolowat_solo": _SOCK_OPS, "autolowat_sockopt": _SETSOCKOPT},
    Engine.NATIVE: {"autolowat_native": _SOCK_OPS, "autolowat_sockopt": _SETSOCKOPT},
}
# Of the engine solo, for devices with and without an Ethernet header
_AT_DEVICES = {True: "solo_tc", False: "solo_tc_raw"}
# What the native engine is compiled with, by the kernel's name of it
_HOOK = {"RCVQ_OP": "BPF_SOCK_OPS_RCVQ_CB", "RCVQ_FLAG": "BPF_SOCK_OPS_RCVQ_CB_FLAG"}
_KFUNCS = {"RCVLOWAT_ID": "bpf_sock_ops_tcp_set_rcvlowat", "CAST_ID": "bpf_cast_to_kern_ctx"}
_NATIVE_OFFSETS = {
    "OFF_SOCK_OPS_SKB": "bpf_sock_ops_kern.skb",
    "OFF_SKB_CB": "sk_buff.cb",
    "OFF_CB_SEQ": "tcp_skb_cb.seq",
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


@record
class EngineMaps:
    """`sockets` by socket, `settings`, `counters` per CPU, `ports`, and `about`: a text for the next run."""

    sockets: bpf.Map
    settings: bpf.Map
    counters: bpf.Map
    ports: bpf.Map
    about: bpf.Map

    @classmethod
    def create(cls, stack: ExitStack, engine: Engine, ports: Sequence[int], about: str) -> Self:
        """New maps, closed with the stack: for sockets of the calling thread's network namespace, or, native, of any.

        Without ports applications opt in. The programs do nothing until set_working().
        """

        def own(entry: bpf.Map) -> bpf.Map:
            return stack.enter_context(entry)

        array, entries = bpf.MapType.ARRAY, _FAIL_OPENS + len(_DOUBTS) + 1
        made = cls(
            sockets=own(_sockets_map(engine)),
            settings=own(bpf.Map.create(array, "settings", max_entries=_SETTINGS)),
            counters=own(bpf.Map.create(bpf.MapType.PERCPU_ARRAY, "counters", value_size=8, max_entries=entries)),
            ports=own(bpf.Map.create(array, "ports", value_size=8, max_entries=_PORTS // _PORTS_IN_WORD)),
            about=own(bpf.Map.create(array, "about", value_size=_TEXT)),
        )
        for word in {port // _PORTS_IN_WORD for port in ports} or range(_PORTS // _PORTS_IN_WORD):
            bits = sum(1 << port % _PORTS_IN_WORD for port in set(ports) if port // _PORTS_IN_WORD == word)
            made.ports.update(word, struct.pack("=Q", bits if ports else 2**_PORTS_IN_WORD - 1))
        made.settings.update_u32(_ARM_PORTS, int(bool(ports)))
        made.settings.update_u32(_NETNS, netns.identity())
        made.set_text(about)
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

    def set_text(self, about: str) -> None:
        self.about.update(0, about.encode().ljust(_TEXT, b"\0"))

    def set_working(self, working: bool) -> None:
        self.settings.update_u32(_WORKING, int(working))

    def is_working(self) -> bool:
        return bool(self.settings.lookup_u32(_WORKING))

    def count(self, key: int) -> int:
        """A counter, summed over the processors."""
        return sum(value for (value,) in struct.iter_unpack("=Q", self.counters.lookup(key)))

    def fail_opens(self) -> FailOpens:
        return FailOpens(**{name: self.count(_FAIL_OPENS + 1 + doubt) for doubt, name in enumerate(_DOUBTS)})


def _sockets_map(engine: Engine) -> bpf.Map:
    if engine is Engine.NATIVE:
        return bpf.Map.create_typed(bpf.MapType.SK_STORAGE, "autolowat", value_size=_STATE_SIZE)
    return bpf.Map.create_typed(
        bpf.MapType.HASH,
        "autolowat",
        key_size=_KEY_SIZE,
        value_size=_FLOW_SIZE,
        max_entries=_FLOWS_MAX,
        locked=True,
    )


def _constant(name: str) -> str:
    return f"{name.upper()}_FD"


def _offsets() -> dict[str, int]:
    found = {**btf.offsets(_OFFSETS), **btf.ipv6_offsets()}
    # wait_queue_head_t is a typedef, which a path of fields does not go through.
    found["OFF_WAIT_HEAD"] = btf.offset("socket_wq", "wait") + btf.offset("wait_queue_head", "head")
    # An error of the program's choice came with Linux 5.18; since 5.15 these programs may set options themselves.
    has_retval = btf.enumerator("BPF_FUNC_set_retval") is not None
    return {**found, "CAN_SET": int(has_retval), "CAN_SET_RETVAL": int(has_retval)}


def can_choose_errors() -> bool:
    """Whether a refused opt-in says why (Linux 5.18); else it is EPERM."""
    return btf.enumerator("BPF_FUNC_set_retval") is not None


def _source(name: str, defines: Mapping[str, int], kfuncs: Sequence[str] = ()) -> Source:
    return Source(
        path=bpf_dir() / "autolowat" / f"{name}.c",
        defines={"NONBLOCK": os.O_NONBLOCK, **_SIZES, **_offsets(), **defines},
        maps=tuple(map(_constant, EngineMaps.__dataclass_fields__)),
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
            f"this kernel lacks {', '.join(missing)}, which the native engine needs",
            hint="--engine solo works on stock kernels; vagrant/kernel/ builds a kernel with the hook",
        )
    numbers = {name: btf.enumerator(constant) or 0 for name, constant in _HOOK.items()}
    return _source(engine, {**numbers, **btf.offsets(_NATIVE_OFFSETS), **defines}, tuple(_KFUNCS))


def load(
    engine: Engine, maps: EngineMaps, defines: Mapping[str, int], devices: Sequence[tc.Device] = ()
) -> dict[str, bpf.Program]:
    """Load the programs of an engine, by name.

    Args:
        defines: as for source().
        devices: those that at_device() will be asked for.

    Raises:
        Unsupported, MissingCapability, ProgramRejected.
    """
    chosen, functions = source(engine, defines), dict(_PROGRAMS[engine])
    for device in devices:
        functions[_AT_DEVICES[device.has_header]] = (ProgramType.SCHED_CLS, AttachType.NONE)
    kfuncs = {name: btf.function(_KFUNCS[name]) for name in chosen.kfuncs}
    programs = load_all(chosen, functions, maps.linked() | kfuncs)
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


def at_device(programs: Mapping[str, bpf.Program], device: tc.Device) -> bpf.Program:
    """The program of the engine solo that belongs at a device's ingress."""
    return programs[_AT_DEVICES[device.has_header]]


def devices_of(engine: Engine) -> list[tc.Device]:
    """Where in the calling thread's namespace the engine has a program."""
    return tc.topmost_devices() if engine is Engine.SOLO else []


@contextmanager
def attached(
    engine: Engine, maps: EngineMaps, defines: Mapping[str, int], cgroup_fd: int, at_devices: ExitStack
) -> Iterator[None]:
    """Load and attach, until the end of the block, and at the devices of the calling thread's namespace, until
    `at_devices` is closed; nothing is pinned. Raises as load()."""
    label = f"reuseport_tool_{os.getpid()}"
    devices = devices_of(engine)
    with ExitStack() as stack:
        programs = load(engine, maps, defines, devices)
        for program in programs.values():
            stack.enter_context(program)
        for link in attach(engine, programs, cgroup_fd).values():
            stack.enter_context(link)
        for device in devices:
            program = at_device(programs, device)
            try:
                at_devices.enter_context(tc.attach_tcx(program, device))
            except Unsupported:
                at_devices.enter_context(tc.IngressFilter(program, device, label))
        yield


class FollowedSocket(NamedTuple):
    """struct followed of bpf/autolowat/walk.c: one socket that a program follows or has followed."""

    armed: int
    lowat: int


def walk_source(engine: Engine, can_set: bool = True) -> Source:
    """The program of a Walk."""
    return _source("walk", {"ENGINE_SOLO": int(engine is Engine.SOLO), "CAN_SET": int(can_set)})


class Walk(Closing):
    """The iterator over the sockets that AutoLOWAT follows. A context manager; raises as BpfIterator.

    A walk goes over the sockets of the calling thread's network namespace, each of them locked. While AutoLOWAT is
    not working it gives every socket SO_RCVLOWAT 1, where an iterator may do that (Linux 5.19).
    """

    def __init__(self, engine: Engine, maps: EngineMaps) -> None:
        try:
            self._iterator = BpfIterator(Protocol.TCP, walk_source(engine), maps.linked())
        except ProgramRejected:
            self._iterator = BpfIterator(Protocol.TCP, walk_source(engine, can_set=False), maps.linked())

    def read(self) -> list[FollowedSocket]:
        return [FollowedSocket(*entry) for entry in struct.iter_unpack("=II", self._iterator.read())]

    def close(self) -> None:
        self._iterator.close()
