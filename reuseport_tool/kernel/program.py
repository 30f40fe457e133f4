"""Programs: code from the cache or from the compiler, linked with maps and kernel functions, loaded by bpf(2)."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import re
import stat
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from dataclasses import field
from pathlib import Path
from types import MappingProxyType

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import abi, btf, capabilities, compiler, folders, libc, program_cache, rlimit
from reuseport_tool.kernel.bpf import Program
from reuseport_tool.kernel.compiler import Code, Compiled
from reuseport_tool.record import record

_PROG_LOAD = 5
_NAME_MAX = 15  # BPF_OBJ_NAME_LEN - 1
_LOG_BYTES = 1 << 22
_INSTRUCTION = struct.Struct("=BBhi")
_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2
_LOAD_64, _PSEUDO_MAP_FD = 0x18, 1
# What stands for a map or a kernel function until the code is linked. No descriptor and no helper is as high.
_FIRST_MAP, _FIRST_KFUNC = 0x40000000, 0x50000000
_NO_VALUES: Mapping[str, int] = MappingProxyType({})


class ProgramType(enum.IntEnum):
    SCHED_CLS = 3
    CGROUP_SKB = 8
    SOCK_OPS = 13
    CGROUP_SOCK = 9
    RAW_TRACEPOINT = 17
    SK_REUSEPORT = 21
    CGROUP_SOCKOPT = 25
    TRACING = 26


_OF_THE_NETWORK = (
    ProgramType.SCHED_CLS,
    ProgramType.SOCK_OPS,
    ProgramType.CGROUP_SOCK,
    ProgramType.CGROUP_SOCKOPT,
)


class AttachType(enum.IntEnum):
    NONE = 0  # the kernel takes none, or its default, for the type of program
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
    """The folder of the C programs."""
    return compiler.bpf_dir()


@record
class Source:
    """What is compiled.

    Attributes:
        path: the C file.
        defines: the constants that it is compiled with; all that depends on the kernel is in them.
        maps, kfuncs: the constants that stand for a map or for a kernel function until the code is linked.
            C writes `(void *)bpf_pseudo_fd(1, NAME)` for a map, and calls a kernel function through the
            constant as if it were a helper of that number.
        is_ours: it is one of the tool's own files.
    """

    path: Path
    defines: Mapping[str, int] = field(default_factory=dict)
    maps: tuple[str, ...] = ()
    kfuncs: tuple[str, ...] = ()
    is_ours: bool = True

    def numbers(self) -> dict[str, int]:
        """What stands for the maps and kernel functions."""
        maps = {name: _FIRST_MAP + at for at, name in enumerate(self.maps)}
        return maps | {name: _FIRST_KFUNC + at for at, name in enumerate(self.kfuncs)}

    def constants(self) -> dict[str, int]:
        """Everything that it is compiled with."""
        return {**abi.SIZES, **self.defines, **self.numbers()}


def load(
    source: Source,
    function: str,
    kind: ProgramType,
    attach_type: AttachType,
    values: Mapping[str, int] = _NO_VALUES,
) -> Program:
    """Load one function of a C file; see Module.load()."""
    with Module(source) as module:
        return module.load(function, kind, attach_type, values)


def load_all(
    source: Source,
    functions: Mapping[str, tuple[ProgramType, AttachType]],
    values: Mapping[str, int],
) -> list[Program]:
    """Load functions of a C file, in the order given; see Module.load()."""
    with Module(source) as module, ExitStack() as loaded:
        programs = [
            loaded.enter_context(module.load(function, kind, attach_type, values))
            for function, (kind, attach_type) in functions.items()
        ]
        loaded.pop_all()
    return programs


class Module(Closing):
    """A compiled C file. A context manager; the programs that were loaded of it live on.

    Raises:
        ProgramRejected: it does not compile; the compiler's text is the error's log.
        Unsupported: it is not in the cache, and BCC is missing.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._compiled: Compiled | None = None
        text, may_be_kept = _read(source)
        request = program_cache.CompileRequest(
            text=text, name=source.path.name, constants=source.constants(), may_be_kept=may_be_kept
        )
        self._request = request
        code = request.find(compiler.identity())
        if code is None:
            code = self._compile(text, request)
        self._code = code

    @property
    def is_kept(self) -> bool:
        """Whether the cache has it now."""
        return self._request.find(None) is not None

    def _compile(self, text: bytes, request: program_cache.CompileRequest) -> Code:
        name, constants = self._source.path.name, self._source.constants()
        by_another = request.find(None)
        beside = None if self._source.is_ours else _own_folder(self._source.path)
        try:
            code = compiler.compile_apart(name, text, constants, beside)
        except Unsupported:
            if by_another is None:
                raise
            return by_another
        program_cache.require_unchanged()
        if all(map(self._is_self_contained, code.functions.values())):
            request.keep(code, compiler.identity())
            return code
        self._compiled = compiler.compile_text(name, text, constants, beside)
        return Code(license=self._compiled.license, functions=self._compiled.functions)

    def _is_self_contained(self, code: bytes) -> bool:
        """Whether its only maps are those that are linked; a file may also declare maps of its own by BCC's macros."""
        linked = self._source.numbers().values()
        return all(
            registers >> 4 == 0 or (registers >> 4 == _PSEUDO_MAP_FD and immediate in linked)
            for operation, registers, _, immediate in _INSTRUCTION.iter_unpack(code)
            if operation == _LOAD_64
        )

    def load(
        self,
        function: str,
        kind: ProgramType,
        attach_type: AttachType,
        values: Mapping[str, int] = _NO_VALUES,
    ) -> Program:
        """Load one function.

        Args:
            values: by their constants, the descriptors of the source's maps and the BTF ids of its kernel functions.

        Raises:
            ProgramRejected: there is no such function, or the verifier refuses it; the verifier's text
                is the error's log.
            MissingCapability: loading is not permitted.
            Unsupported: the kernel has no such iterator.
        """
        code = self._code.functions.get(function)
        if code is None:
            raise ProgramRejected(
                f"{self._source.path.name} has no program named {function}",
                hint=f"the program has the name of its file: write REUSEPORT_POLICY({function})",
            )
        numbers = self._source.numbers()
        by_number = {numbers[name]: value for name, value in values.items()}
        return load_code(link(code, by_number), kind, attach_type, name=function, license_text=self._code.license)

    def close(self) -> None:
        if self._compiled is not None:
            self._compiled.close()


def _read(source: Source) -> tuple[bytes, bool]:
    """The text, and whether code that is made of it may be kept."""
    if source.is_ours and source.path in program_cache.ours().texts:
        return program_cache.ours().texts[source.path], True
    with open(source.path, "rb") as file:
        text = file.read()
        private = folders.is_private(os.fstat(file.fileno()), stat.S_IFREG)
    return text, source.is_ours or (private and program_cache.includes_only_ours(text))


def _own_folder(path: Path) -> Path | None:
    """The folder of a policy of one's own, to search for its headers; None where somebody else could put some there."""
    folder = path.absolute().parent
    return folder if folders.is_private(os.stat(folder), stat.S_IFDIR) else None


def link(code: bytes, values: Mapping[int, int]) -> bytes:
    """The instructions with the values in place of the numbers that stand for them.

    A map is loaded by BPF_LD | BPF_IMM | BPF_DW with src_reg = BPF_PSEUDO_MAP_FD, and imm is its descriptor. A kernel
    function is called with src_reg = BPF_PSEUDO_KFUNC_CALL, which C cannot write, and imm is its BTF id. struct
    bpf_insn is code, dst_reg:4 and src_reg:4, off, imm (include/uapi/linux/bpf.h).
    """
    linked = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(code, at)
        if immediate not in values:
            continue
        if operation == _LOAD_64 and registers >> 4 == _PSEUDO_MAP_FD:
            _INSTRUCTION.pack_into(linked, at, operation, registers, offset, values[immediate])
        elif operation == _CALL and registers >> 4 == 0:
            marked = registers & 0x0F | _PSEUDO_KFUNC_CALL << 4
            _INSTRUCTION.pack_into(linked, at, operation, marked, offset, values[immediate])
    return bytes(linked)


class _ProgLoad(ctypes.Structure):
    """union bpf_attr of BPF_PROG_LOAD up to attach_btf_id (Linux 5.5)."""

    _fields_ = [
        ("prog_type", u32),
        ("insn_cnt", u32),
        ("insns", u64),
        ("license", u64),
        ("log_level", u32),
        ("log_size", u32),
        ("log_buf", u64),
        ("kern_version", u32),
        ("prog_flags", u32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", u32),
        ("expected_attach_type", u32),
        ("prog_btf_fd", u32),
        ("func_info_rec_size", u32),
        ("func_info", u64),
        ("func_info_cnt", u32),
        ("line_info_rec_size", u32),
        ("line_info", u64),
        ("line_info_cnt", u32),
        ("attach_btf_id", u32),
    ]


def load_code(code: bytes, kind: ProgramType, attach_type: AttachType, *, name: str, license_text: bytes) -> Program:
    """Load linked instructions. Raises as Module.load()."""
    try:
        return load_instructions(code, kind, int(attach_type), name=name, license_text=license_text)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise MissingCapability(
                "loading a BPF program is not permitted", hint=capabilities.hint(*_needed(kind))
            ) from error
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return load_instructions(code, kind, int(attach_type), name=name, license_text=license_text, log=log)
        except OSError as again:
            raise _rejected(name, kind, again, log.value.decode(errors="replace")) from again


def load_instructions(
    code: bytes,
    kind: ProgramType,
    attach_type: int,
    *,
    name: str,
    license_text: bytes = b"GPL",
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> Program:
    """BPF_PROG_LOAD.

    Args:
        attach_type: enum bpf_attach_type as a plain number, so that a wrong one can be tried; 0 where
            the kernel is to take its default.
        log: for the verifier's text.

    Raises:
        OSError: EINVAL for a program or attach type that the kernel does not have, EPERM, what the verifier says.
        Unsupported: the kernel has no such iterator.
    """
    instructions, declared = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(license_text)
    attr = _ProgLoad(
        prog_type=kind,
        insn_cnt=len(code) // _INSTRUCTION.size,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(declared),
        prog_name=name.encode()[:_NAME_MAX],
        expected_attach_type=attach_type,
        attach_btf_id=_iterated(name) if kind is ProgramType.TRACING else 0,
    )
    if log is not None:
        attr.log_level, attr.log_size, attr.log_buf = 1, len(log), ctypes.addressof(log)
    try:
        return Program(libc.bpf(_PROG_LOAD, attr, f"load {name}"))
    except PermissionError as error:
        if error.errno != errno.EPERM or not rlimit.lock_more_memory():
            raise
        return Program(libc.bpf(_PROG_LOAD, attr, f"load {name}"))


def _iterated(name: str) -> int:
    """The BTF id of the kernel's function that an iterator's program is loaded for: bpf_iter_tcp of bpf_iter__tcp."""
    try:
        return btf.function(name.replace("bpf_iter__", "bpf_iter_"))
    except Unsupported as error:
        over = name.removeprefix("bpf_iter__")
        raise Unsupported(
            f"the kernel has no BPF iterator over {over}", hint="iterators came with Linux 5.9"
        ) from error


def _needed(kind: ProgramType) -> tuple[str, ...]:
    """The capabilities that loading a program of this type takes (is_net_admin_prog_type() in kernel/bpf/syscall.c)."""
    return ("CAP_BPF", "CAP_PERFMON", *(("CAP_NET_ADMIN",) if kind in _OF_THE_NETWORK else ()))


def _rejected(name: str, kind: ProgramType, error: OSError, log: str) -> ToolError:
    if kind in _OF_THE_NETWORK and capabilities.missing(_needed(kind)):
        # Without CAP_PERFMON the verifier knows no helper that reads the kernel's memory.
        return MissingCapability(f"loading {name} is not permitted", hint=capabilities.hint(*_needed(kind)), log=log)
    lines = [line for line in log.splitlines() if line.strip() and not re.match(r"processed \d+ insns", line)]
    last = lines[-1].strip() if lines else os.strerror(error.errno or 0)
    omitted = f" ({len(lines) - 1} lines omitted)" if len(lines) > 1 else ""
    return ProgramRejected(
        f"the verifier rejected {name}: {last}{omitted}", hint="--verbose shows the verifier's log", log=log
    )
