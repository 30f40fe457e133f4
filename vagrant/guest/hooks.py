"""Load and attach cgroup programs that call kfuncs, found by name in the running kernel's types.

The programs stay BCC's own here: a proof is to stand on little.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import btf, libc

PROG_LOAD, PROG_ATTACH = 5, 8
SOCK_OPS, CGROUP_SOCKOPT = 13, 25
ATTACH_SOCK_OPS, ATTACH_SETSOCKOPT = 3, 22
_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2


class _Load(ctypes.Structure):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    ]


class _Attach(ctypes.Structure):
    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    ]


def enum_value(name: str) -> int | None:
    """The value of an enum's constant, None when the kernel has none of that name."""
    return btf.enumerator(name)


def function_id(name: str) -> int | None:
    """The BTF id of a kernel function (a kfunc), None when there is none of that name."""
    try:
        return btf.function(name)
    except Unsupported:
        return None


def compile_file(source: Path, defines: Mapping[str, int]) -> Any:
    """BCC's module of a C file."""
    os.environ["BCC_KERNEL_SOURCE"] = str(Path(__file__).resolve().parents[2] / "bpf")
    from bcc import BPF

    return BPF(src_file=str(source), cflags=[f"-D{name}={value}" for name, value in defines.items()])


def load(module: Any, name: str, kind: int, attach_type: int, kfuncs: tuple[int, ...]) -> int:
    """Load one function with its kfunc calls; returns the program's fd. Raises OSError with the verifier's end."""
    code = bytearray(module.dump_func(name.encode()))
    for at in range(0, len(code), 8):
        opcode, registers, _, immediate = struct.unpack_from("<BBhi", code, at)
        if opcode == _CALL and immediate in kfuncs:
            code[at + 1] = registers & 0x0F | _PSEUDO_KFUNC_CALL << 4
    instructions = ctypes.create_string_buffer(bytes(code), len(code))
    licence, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(1 << 20)
    attr = _Load(
        prog_type=kind,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(licence),
        log_level=1,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
        prog_name=name.encode(),
        expected_attach_type=attach_type,
    )
    try:
        return bpf(PROG_LOAD, attr)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {log.value.decode(errors='replace')[-600:]}") from error


def attach(cgroup_fd: int, program_fd: int, attach_type: int) -> None:
    bpf(PROG_ATTACH, _Attach(target_fd=cgroup_fd, attach_bpf_fd=program_fd, attach_type=attach_type))


def bpf(command: int, attr: ctypes.Structure) -> int:
    return libc.bpf(command, attr, f"bpf({command})")


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[int]:
    """A cgroup that this process is in while the block runs; its programs end with it. Yields its fd."""
    root = _cgroup_root()
    folder = root / name
    folder.mkdir(exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        yield fd
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        os.close(fd)
        folder.rmdir()


def _cgroup_root() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise FileNotFoundError("cgroup2 is not mounted")
