"""The smallest sk_reuseport programs, loaded with bpf(2) alone: no compiler, microseconds."""

from __future__ import annotations

import enum
import struct

from reuseport_tool.kernel.bpf import Program
from reuseport_tool.kernel.program import ProgramType, load_instructions

_MOV64_IMM_R0, _EXIT = 0xB7, 0x95


class Verdict(enum.IntEnum):
    """enum sk_action. DROP refuses the connection; PASS leaves the choice to the kernel."""

    DROP = 0
    PASS = 1


def load(verdict: Verdict, attach_type: int = 0) -> Program:
    """Load a program that always returns `verdict`.

    Args:
        attach_type: enum bpf_attach_type as a plain number, so that a wrong one can be tried; 0 where
            the kernel is to take its default.

    Raises:
        OSError: EINVAL for a program or attach type that the kernel does not have, EPERM.
    """
    code = struct.pack("=BBhi", _MOV64_IMM_R0, 0, 0, verdict) + struct.pack("=BBhi", _EXIT, 0, 0, 0)
    return load_instructions(code, ProgramType.SK_REUSEPORT, attach_type, name="probe")
