"""The running kernel's type information, read with libbpf: where a field of a struct is."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator, Mapping

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import libbpf
from reuseport_tool.kernel.btf_cache import remembered

_UNKNOWN = "what needs it cannot work on this kernel; 'doctor' shows what can"
_KIND_PTR, _KIND_STRUCT, _KIND_UNION, _KIND_TYPEDEF, _KIND_CONST, _KIND_FUNC = 2, 4, 5, 8, 10, 12


class _Type(ctypes.Structure):
    """struct btf_type; `info` is kind_flag:1, kind:5 (at bit 24), vlen:16."""

    _fields_ = [("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32)]


class _Parameter(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class _Member(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


class _Enum(ctypes.Structure):
    """struct btf_enum."""

    _fields_ = [("name_off", ctypes.c_uint32), ("low", ctypes.c_uint32)]


class _Enum64(ctypes.Structure):
    """struct btf_enum64."""

    _fields_ = [("name_off", ctypes.c_uint32), ("low", ctypes.c_uint32), ("high", ctypes.c_uint32)]


_CONSTANTS: dict[int, type[_Enum | _Enum64]] = {6: _Enum, 19: _Enum64}  # BTF_KIND_ENUM, BTF_KIND_ENUM64


@functools.cache
def _vmlinux() -> int:
    try:
        return libbpf.pointer("btf__parse", b"/sys/kernel/btf/vmlinux", None)
    except FileNotFoundError as error:
        raise Unsupported("the kernel has no type information", hint="it needs CONFIG_DEBUG_INFO_BTF") from error


@remembered
def offset(type_name: str, field: str) -> int:
    """The offset in bytes of `field` (dotted for nested structs) in a struct of the running kernel.

    Fields of anonymous structs and unions are found, too.

    Raises:
        Unsupported: no BTF, no such struct or no such field.
    """
    return _offset_bits(type_name, field) // 8


def bit(type_name: str, field: str) -> tuple[int, int]:
    """Where a field of one bit is: the offset of its byte, and the mask in it. Raises as offset()."""
    bits = _offset_bits(type_name, field)
    return bits // 8, 1 << bits % 8 if sys.byteorder == "little" else 0x80 >> bits % 8


@remembered
def size(type_name: str) -> int:
    """The size in bytes of a struct of the running kernel. Raises Unsupported."""
    address = libbpf.library().btf__type_by_id(_vmlinux(), _struct(type_name))
    return int(_Type.from_address(address).size_or_type)


@remembered
def _offset_bits(type_name: str, field: str) -> int:
    type_id, total = _struct(type_name), 0
    for name in field.split("."):
        found = _find(type_id, name)
        if found is None:
            raise Unsupported(f"the kernel's struct {type_name} has no {field}", hint=_UNKNOWN)
        bits, type_id = found
        total += bits
    return total


def _struct(type_name: str) -> int:
    type_id = int(libbpf.library().btf__find_by_name_kind(_vmlinux(), type_name.encode(), _KIND_STRUCT))
    if type_id < 0:
        raise Unsupported(f"the kernel has no struct {type_name}", hint=_UNKNOWN)
    return type_id


def offsets(fields: Mapping[str, str]) -> dict[str, int]:
    """The offset() of each `struct.field`, by the name that a program is compiled with. Raises Unsupported."""
    return {name: offset(*path.split(".", 1)) for name, path in fields.items()}


def ipv6_offsets() -> dict[str, int]:
    """Of a socket's IPv6 addresses; 0 without CONFIG_IPV6, where there is no socket for which they are read."""
    if not has_field("sock_common", "skc_v6_rcv_saddr"):
        return {"OFF_LOCAL6": 0, "OFF_REMOTE6": 0}
    return offsets({"OFF_LOCAL6": "sock_common.skc_v6_rcv_saddr", "OFF_REMOTE6": "sock_common.skc_v6_daddr"})


@remembered
def function(name: str) -> int:
    """The BTF id of a function of the running kernel, which is also how a program calls a kfunc.

    Raises:
        Unsupported: no BTF, or no such function.
    """
    type_id = libbpf.library().btf__find_by_name_kind(_vmlinux(), name.encode(), _KIND_FUNC)
    if type_id < 0:
        raise Unsupported(f"the kernel has no function {name}()", hint=_UNKNOWN)
    return int(type_id)


@remembered
def enumerator(name: str) -> int | None:
    """The value of an enum's constant in the running kernel, None when there is none of that name.

    Raises:
        Unsupported: no BTF, or enums of that kernel use the name for different values.
    """
    values = enumerators().get(name, frozenset())
    if len(values) > 1:
        raise Unsupported(f"the kernel has several enumerators named {name}", hint=_UNKNOWN)
    return next(iter(values), None)


@functools.cache
def enumerators() -> dict[str, frozenset[int]]:
    """Every enum's constant in the running kernel, by its name: libbpf has no look-up for them.

    Raises:
        Unsupported: no BTF.
    """
    lib, btf = libbpf.library(), _vmlinux()
    found: dict[str, set[int]] = {}
    for type_id in range(1, lib.btf__type_cnt(btf)):
        for offset, value in _constants(lib.btf__type_by_id(btf, type_id)):
            found.setdefault(lib.btf__name_by_offset(btf, offset).decode(), set()).add(value)
    return {name: frozenset(values) for name, values in found.items()}


def _constants(address: int) -> Iterator[tuple[int, int]]:
    """The name's offset and the value of each constant, if the type is an enum."""
    info = _Type.from_address(address).info
    kind = _CONSTANTS.get(info >> 24 & 0x1F)
    if kind is None:
        return
    signed = info >> 31
    for constant in (kind * (info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type)):
        value = constant.low | getattr(constant, "high", 0) << 32
        bits = 8 * (ctypes.sizeof(kind) - 4)
        yield constant.name_off, value - (1 << bits) if signed and value >> (bits - 1) else value


@remembered
def has_tracepoint(name: str, *arguments: str) -> bool:
    """Whether the running kernel has a tracepoint whose arguments begin with pointers to these structs.

    Raw tracepoints pass them as they stand in TP_PROTO(); BTF has them as the typedef btf_trace_<name> of a function
    whose first argument is not the tracepoint's. Raises Unsupported without BTF.
    """
    lib, btf = libbpf.library(), _vmlinux()
    type_id = lib.btf__find_by_name_kind(btf, f"btf_trace_{name}".encode(), _KIND_TYPEDEF)
    if type_id < 0:
        return False
    address = lib.btf__type_by_id(btf, _pointed_at(type_id))
    count = _Type.from_address(address).info & 0xFFFF
    parameters = (_Parameter * count).from_address(address + ctypes.sizeof(_Type))
    return [_struct_behind(parameter.type) for parameter in parameters[1 : len(arguments) + 1]] == list(arguments)


def _pointed_at(type_id: int) -> int:
    """The type behind pointers, typedefs and const."""
    lib, btf = libbpf.library(), _vmlinux()
    while True:
        kind = _Type.from_address(lib.btf__type_by_id(btf, type_id))
        if kind.info >> 24 & 0x1F not in (_KIND_PTR, _KIND_TYPEDEF, _KIND_CONST):
            return type_id
        type_id = kind.size_or_type


def _struct_behind(type_id: int) -> str:
    lib, btf = libbpf.library(), _vmlinux()
    kind = _Type.from_address(lib.btf__type_by_id(btf, _pointed_at(type_id)))
    return str(lib.btf__name_by_offset(btf, kind.name_off).decode())


@remembered
def has_union(name: str) -> bool:
    """Whether the running kernel has a union of that name. Raises Unsupported without BTF."""
    return bool(libbpf.library().btf__find_by_name_kind(_vmlinux(), name.encode(), _KIND_UNION) > 0)


@remembered
def has_struct(name: str) -> bool:
    """Whether the running kernel has a struct of that name. Raises Unsupported without BTF."""
    return bool(libbpf.library().btf__find_by_name_kind(_vmlinux(), name.encode(), _KIND_STRUCT) > 0)


@remembered
def has_field(struct: str, field: str) -> bool:
    """Whether the running kernel has a struct of that name with that field. Raises Unsupported without BTF."""
    type_id = libbpf.library().btf__find_by_name_kind(_vmlinux(), struct.encode(), _KIND_STRUCT)
    return bool(type_id > 0 and _find(type_id, field))


def _find(type_id: int, name: str) -> tuple[int, int] | None:
    """Offset in bits and type id of a member, searching anonymous members in depth."""
    lib, btf = libbpf.library(), _vmlinux()
    address = lib.btf__type_by_id(btf, type_id)
    info = _Type.from_address(address).info
    if info >> 24 & 0x1F not in (_KIND_STRUCT, _KIND_UNION):
        return None
    bitfields = info >> 31
    members = (_Member * (info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
    for member in members:
        bits = member.offset & 0xFFFFFF if bitfields else member.offset
        member_name = lib.btf__name_by_offset(btf, member.name_off).decode()
        if member_name == name:
            return bits, member.type
        if not member_name:
            inner = _find(member.type, name)
            if inner is not None:
                return bits + inner[0], inner[1]
    return None
