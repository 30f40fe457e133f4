"""BCC: compile a C file of ours without kernel headers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import rlimit
from reuseport_tool.record import record
from reuseport_tool.waiting import readable

_LIBRARY = "libbcc.so.0"
_PT_NOTE, _NT_GNU_BUILD_ID = 4, 3
_LOG_MAX = 1 << 22
_CAME_TO_AN_END = 77  # no exit code of LLVM
_LONGEST_S = 300.0


def bpf_dir() -> Path:
    """The folder of the C programs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "bpf"
    return inside if inside.is_dir() else package.parent / "bpf"


@record
class Code:
    """The instructions of a compiled file's functions, by name, not linked yet."""

    license: bytes
    functions: Mapping[str, bytes]


class Compiled(Closing):
    """The functions of a compiled C file. A context manager: it owns the maps that the file itself declares.

    Attributes:
        functions: the instructions of each function, by name.
        license: what the file declares, "GPL" by default.
    """

    def __init__(self, module: Any) -> None:
        from bcc import lib

        handle = module.module
        self._module = module
        names = [lib.bpf_function_name(handle, index) for index in range(lib.bpf_num_functions(handle))]
        self.functions = {name.decode(): bytes(module.dump_func(name)) for name in names}
        self.license = ctypes.string_at(lib.bpf_module_license(handle) or b"GPL")

    def close(self) -> None:
        self._module.cleanup()  # BCC would keep its own descriptors until the process ends


def compile_text(name: str, text: bytes, defines: Mapping[str, int], beside: Path | None = None) -> Compiled:
    """Compile C text with -D for each define. It includes the headers in bpf_dir(), and then those in `beside`.

    Args:
        name: of the file, for messages.
        beside: the folder of a stranger's file.

    Raises:
        ProgramRejected: it does not compile; the compiler's text is the error's log.
        Unsupported: BCC is missing.
    """
    bpf_class = _bcc()
    with captured_stderr() as captured, _in_bpf_dir():
        try:
            return Compiled(bpf_class(text=text, cflags=_cflags(defines, beside)))
        except Exception as error:  # BCC raises nothing more specific
            raise _compile_error(name, captured()) from error


def compile_apart(name: str, text: bytes, defines: Mapping[str, int], beside: Path | None = None) -> Code:
    """As compile_text(), in a child, whose own maps end with it: whatever becomes of the compiler, we go on.

    LLVM ends the process on code that it cannot express, by a signal or, as in Debian 13, by exit(3) and perhaps
    without a word; so it may where memory is limited. The child has to say that it came to an end.

    Raises:
        ProgramRejected: it does not compile, or the compiler crashed.
        Unsupported: BCC is missing.
    """
    bpf_class = _bcc()
    with _memory_file() as log, _memory_file() as result:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException), _in_bpf_dir():
                os.dup2(log, 2)
                _close_all_but(log, result)
                compiled = Compiled(bpf_class(text=text, cflags=_cflags(defines, beside)))
                os.write(result, _packed(compiled))
            os._exit(_CAME_TO_AN_END)
        code = _ended(child)
        output = os.pread(log, _LOG_MAX, 0).decode(errors="replace")
        if code is None:
            raise ProgramRejected(
                f"{name} does not compile within {_LONGEST_S:g} s",
                hint="look for macros that grow without end, or try again on a machine that is less busy",
                log=output,
            )
        if code != _CAME_TO_AN_END:
            raise _crashed(name, code, output)
        packed = os.pread(result, os.fstat(result).st_size, 0)
    if not packed:
        raise _compile_error(name, output)
    license_text, functions = json.loads(packed)
    return Code(
        license=license_text.encode(), functions={name: bytes.fromhex(code) for name, code in functions.items()}
    )


def _ended(child: int) -> int | None:
    """The exit code of the compiler's process. One that takes too long, or is not waited for, is killed."""
    in_time = False
    try:
        pidfd = os.pidfd_open(child)
        try:
            in_time = readable(pidfd, _LONGEST_S)
        finally:
            os.close(pidfd)
    finally:
        if not in_time:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) if in_time else None


def _close_all_but(*wanted: int) -> None:
    """Close what a child inherited: a copy of a listener keeps it open after its owner has closed it."""
    first = 3
    for fd in (*sorted(wanted), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, fd)
        first = fd + 1


def _packed(compiled: Compiled) -> bytes:
    functions = {name: code.hex() for name, code in compiled.functions.items()}
    return json.dumps([compiled.license.decode(), functions]).encode()


def _crashed(name: str, code: int, output: str) -> ProgramRejected:
    words = [line for line in output.splitlines() if line.strip()]
    return ProgramRejected(
        f"{name} does not compile: {words[-1] if words else f'the compiler ended with {code}'}",
        hint="BPF has no such instruction on BCC's target (an atomic whose result is used, for example)",
        log=output,
    )


def identity() -> str | None:
    """What tells one build of BCC from another, without loading it: libbcc's build id. None where there is none."""
    for folder in _library_folders():
        try:
            with open(os.path.join(folder, _LIBRARY), "rb") as file:
                return _build_id(file.read(1 << 13)) or _size_and_time(file.fileno())
        except OSError:
            continue
    return None


def _library_folders() -> Iterator[str]:
    """Where the dynamic loader looks, most specific first."""
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    multiarch = getattr(sys.implementation, "_multiarch", "")
    yield from ("/usr/local/lib", f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/lib64", "/usr/lib64")
    yield from ("/lib", "/usr/lib")


def _build_id(head: bytes) -> str | None:
    """The GNU build id in the first bytes of a 64-bit ELF file: Elf64_Ehdr, Elf64_Phdr, Elf64_Nhdr of elf(5)."""
    if head[:5] != b"\x7fELF\x02":
        return None
    (table,) = struct.unpack_from("=Q", head, 32)
    size, count = struct.unpack_from("=HH", head, 54)
    for at in range(table, min(table + size * count, len(head) - 56 + 1), size):
        kind, _, offset, _, _, length = struct.unpack_from("=IIQQQQ", head, at)
        if kind == _PT_NOTE:
            found = _note(head[offset : offset + length])
            if found:
                return found.hex()
    return None


def _note(notes: bytes) -> bytes | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("=III", notes, at)
        name_at = at + 12
        at = name_at + (name_size + 3) // 4 * 4
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0":
            return notes[at : at + size]
        at += (size + 3) // 4 * 4
    return None


def _size_and_time(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_size}-{status.st_mtime_ns}"


def _cflags(defines: Mapping[str, int], beside: Path | None) -> list[str]:
    folders = [bpf_dir()] if beside is None else [bpf_dir(), beside]
    return [*(f"-I{folder}" for folder in folders), *(f"-D{name}={value}" for name, value in defines.items())]


def _bcc() -> Any:
    # BCC looks for <BCC_KERNEL_SOURCE>/include first; ours holds stubs (bpf/include).
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir())
    try:
        from bcc import BPF
    except (ImportError, OSError) as error:
        rlimit.require_room(1)
        raise Unsupported(
            "BCC's Python module is not installed",
            hint="install python3-bpfcc (Debian, Ubuntu), python3-bcc (Fedora) or python-bcc (Arch), and run the tool "
            "by the distribution's python3; a venv needs --system-site-packages",
        ) from error
    return BPF


@contextlib.contextmanager
def _in_bpf_dir() -> Iterator[None]:
    """Work in our own folder: clang also looks for headers in the current one, a stranger's perhaps, or deleted."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no permission to search it: there is nothing to go back to
            before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, before)
            stack.callback(os.fchdir, before)
        os.chdir(bpf_dir())
        yield


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Redirect fd 2 to a file, because BCC, clang and libbpf write there; yields a reader of it."""
    sys.stderr.flush()
    saved = os.dup(2)
    with _memory_file() as file:
        os.dup2(file, 2)
        try:
            yield lambda: os.pread(file, _LOG_MAX, 0).decode(errors="replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextlib.contextmanager
def _memory_file() -> Iterator[int]:
    fd = os.memfd_create("log")
    try:
        yield fd
    finally:
        os.close(fd)


def _compile_error(name: str, log: str) -> ToolError:
    first = next((line for line in log.splitlines() if "error:" in line), "no message of the compiler")
    return ProgramRejected(
        f"{name} does not compile: {first}",
        hint="--verbose shows the compiler's whole output",
        log=log,
    )
