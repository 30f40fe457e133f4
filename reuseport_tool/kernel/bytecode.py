"""The smallest sk_reuseport programs, loaded with bpf(2) alone: no compiler, microseconds."""

from __future__ import annotations

import ctypes
import enum
import struct

from reuseport_tool.kernel import libc
from reuseport_tool.kernel.bpf import Program
from reuseport_tool.kernel.program import ProgramType

_PROG_LOAD = 5
_MOV64_IMM_R0, _EXIT = 0xB7, 0x95


class Verdict(enum.IntEnum):
    """enum sk_action. DROP refuses the connection; PASS leaves the choice to the kernel."""

    DROP = 0
    PASS = 1


class _ProgLoad(ctypes.Structure):
    """union bpf_attr of BPF_PROG_LOAD up to expected_attach_type (Linux 4.17)."""

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


def load(verdict: Verdict, attach_type: int = 0) -> Program:
    """Load a program that always returns `verdict`.

    Args:
        attach_type: enum bpf_attach_type as a plain number, so that a wrong one can be tried; 0 where
            the kernel is to take its default.

    Raises:
        OSError: EINVAL for a program or attach type that the kernel does not have, EPERM.
    """
    code = struct.pack("=BBhi", _MOV64_IMM_R0, 0, 0, verdict) + struct.pack("=BBhi", _EXIT, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    attr = _ProgLoad(
        prog_type=ProgramType.SK_REUSEPORT,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        prog_name=b"probe",
        expected_attach_type=attach_type,
    )
    return Program(libc.bpf(_PROG_LOAD, attr, "load a sk_reuseport program"))
