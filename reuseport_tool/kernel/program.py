"""BCC: compile a C file of ours without kernel headers, load one function of it."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import capabilities
from reuseport_tool.kernel.bpf import Program

_INSTRUCTION = struct.Struct("=BBhi")
_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2
_LOAD_64, _PSEUDO_MAP_FD = 0x18, 1


class ProgramType(enum.IntEnum):
    CGROUP_SKB = 8
    SOCK_OPS = 13
    CGROUP_SOCK = 9
    RAW_TRACEPOINT = 17
    SK_REUSEPORT = 21
    CGROUP_SOCKOPT = 25
    TRACING = 26


class AttachType(enum.IntEnum):
    NONE = -1
    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_SOCK_OPS = 3
    CGROUP_SETSOCKOPT = 22
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    TRACE_ITER = 28
    SK_REUSEPORT_SELECT = 39
    SK_REUSEPORT_SELECT_OR_MIGRATE = 40


def bpf_dir() -> Path:
    """The folder of the C programs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "bpf"
    return inside if inside.is_dir() else package.parent / "bpf"


def load(
    source: Path,
    function: str,
    kind: ProgramType,
    attach_type: AttachType,
    defines: Mapping[str, int],
    kfunc: int | None = None,
) -> Program:
    """Compile `source` and load one function of it; see load_all()."""
    kfuncs = () if kfunc is None else (kfunc,)
    return load_all(source, {function: (kind, attach_type)}, defines, kfuncs)[0]


def load_all(
    source: Path,
    functions: Mapping[str, tuple[ProgramType, AttachType]],
    defines: Mapping[str, int],
    kfuncs: Sequence[int] = (),
) -> list[Program]:
    """Compile `source` with -D for each define and load functions of it, in the order given.

    Args:
        kfuncs: as for Module.load().

    Raises:
        ProgramRejected, MissingCapability, Unsupported: as Module.
    """
    with Module(source, defines) as module, ExitStack() as loaded:
        programs = [
            loaded.enter_context(module.load(function, kind, attach_type, kfuncs=kfuncs))
            for function, (kind, attach_type) in functions.items()
        ]
        loaded.pop_all()
    return programs


class Module(Closing):
    """A compiled C file. A context manager; the programs that were loaded of it live on.

    Raises:
        ProgramRejected: it does not compile; the compiler's text is the error's log.
        Unsupported: the python3-bpfcc package is missing.
    """

    def __init__(self, source: Path, defines: Mapping[str, int]) -> None:
        bpf_class = _bcc()
        self._source = source
        with _captured_stderr() as captured:
            try:
                self._module: Any = bpf_class(src_file=os.fsencode(source), cflags=_cflags(defines))
            except Exception as error:  # BCC raises nothing more specific
                raise _compile_error(source, captured()) from error

    def load(
        self,
        function: str,
        kind: ProgramType,
        attach_type: AttachType,
        *,
        kfuncs: Sequence[int] = (),
        maps: Mapping[int, int] | None = None,
    ) -> Program:
        """Load one function.

        Args:
            kfuncs: BTF ids of kernel functions that it calls. C calls each through a constant, as if it
                were a helper of that number.
            maps: the descriptors of the maps that C names by other numbers.

        Raises:
            ProgramRejected: there is no such function, or the verifier refuses it; the verifier's text
                is the error's log.
            MissingCapability: loading is not permitted.
        """
        with _captured_stderr() as captured:
            try:
                code = self._module.dump_func(function.encode())
                for kfunc in kfuncs:
                    code = mark_kfunc_calls(code, kfunc)
                return Program(self._load(function, kind, attach_type, link_maps(code, maps or {})))
            except Exception as error:
                raise _load_error(self._source, function, error, captured()) from error

    def _load(self, function: str, kind: ProgramType, attach_type: AttachType, code: bytes) -> int:
        from bcc import lib

        module = self._module.module
        fd = lib.bcc_func_load(
            *(module, int(kind), function.encode(), ctypes.create_string_buffer(code), len(code)),
            *(lib.bpf_module_license(module), lib.bpf_module_kern_version(module)),
            *(0, None, 0, None, int(attach_type)),
        )
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(fd)

    def close(self) -> None:
        self._module.cleanup()  # BCC would keep its own descriptors until the process ends


def mark_kfunc_calls(code: bytes, kfunc: int) -> bytes:
    """The instructions with src_reg = BPF_PSEUDO_KFUNC_CALL in each call of number `kfunc`.

    struct bpf_insn is code, dst_reg:4 and src_reg:4, off, imm (include/uapi/linux/bpf.h).
    """
    marked = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, _, immediate = _INSTRUCTION.unpack_from(code, at)
        if operation == _CALL and registers >> 4 == 0 and immediate == kfunc:
            marked[at + 1] = registers & 0x0F | _PSEUDO_KFUNC_CALL << 4
    return bytes(marked)


def link_maps(code: bytes, maps: Mapping[int, int]) -> bytes:
    """The instructions with the descriptors `maps` in place of the numbers that they load as maps.

    Such a load is BPF_LD | BPF_IMM | BPF_DW with src_reg = BPF_PSEUDO_MAP_FD; imm is the descriptor.
    """
    linked = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_64 and registers >> 4 == _PSEUDO_MAP_FD and immediate in maps:
            _INSTRUCTION.pack_into(linked, at, operation, registers, offset, maps[immediate])
    return bytes(linked)


def compile_aside(source: Path, defines: Mapping[str, int]) -> None:
    """Compile a stranger's file in a child first: LLVM ends the process on code that it cannot express.

    Raises:
        ProgramRejected: the compiler crashed. Ordinary errors are left for load() to report.
    """
    bpf_class = _bcc()
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 2)
            with contextlib.suppress(Exception):
                bpf_class(src_file=os.fsencode(source), cflags=_cflags(defines))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            text = os.pread(log.fileno(), 1 << 22, 0).decode(errors="replace")
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
            raise ProgramRejected(
                f"{source.name} does not compile: {last}",
                hint="BPF has no such instruction on BCC's target (an atomic whose result is used, for example)",
                log=text,
            )


def _cflags(defines: Mapping[str, int]) -> list[str]:
    return [f"-I{bpf_dir()}", *(f"-D{name}={value}" for name, value in defines.items())]


def _bcc() -> Any:
    # BCC looks for <BCC_KERNEL_SOURCE>/include first; ours holds stubs (bpf/include).
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir())
    try:
        from bcc import BPF
    except ImportError as error:
        raise Unsupported(
            "BCC's Python module is not installed",
            hint="install python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora) or python-bcc (Arch), and run the tool "
            "by the distribution's python3; a venv needs --system-site-packages",
        ) from error
    return BPF


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirect fd 2 to a file, because BCC, clang and libbpf write there; yields a reader of it."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def captured() -> str:
            return os.pread(file.fileno(), 1 << 22, 0).decode(errors="replace")

        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _compile_error(source: Path, log: str) -> ToolError:
    first = next((line for line in log.splitlines() if "error:" in line), "no message of the compiler")
    return ProgramRejected(
        f"{source.name} does not compile: {first}",
        hint="--verbose shows the compiler's whole output",
        log=log,
    )


def _load_error(source: Path, function: str, error: Exception, log: str) -> ToolError:
    text = str(error)
    if "super-user" in text or os.strerror(errno.EPERM) in text:
        return MissingCapability(
            "loading a BPF program is not permitted",
            hint=capabilities.hint("CAP_BPF", "CAP_PERFMON"),
        )
    if "Unknown program" in text:
        return ProgramRejected(
            f"{source.name} has no program named {function}",
            hint=f"the program has the name of its file: write REUSEPORT_POLICY({function})",
        )
    lines = [line for line in log.splitlines() if line.strip() and not re.match(r"processed \d+ insns|bpf: ", line)]
    last = lines[-1].strip() if lines else text
    omitted = f" ({len(lines) - 1} lines omitted)" if len(lines) > 1 else ""
    return ProgramRejected(
        f"the verifier rejected {function}: {last}{omitted}", hint="--verbose shows the verifier's log", log=log
    )
