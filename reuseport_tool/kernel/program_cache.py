"""The cache of compiled programs: a private folder of small files, each named by all that its content depends on.

What is read decides what the kernel runs, so anything doubtful counts as absent: a folder or file of somebody else, one
that others can write, a link, a wrong checksum, a kernel or a compiler that is not this one. A file appears by
rename(2), complete. A cache that cannot be written is no error.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import compiler, folders
from reuseport_tool.kernel.compiler import Code
from reuseport_tool.record import record

_FORMAT = b"reuseport-tool cache 1\n"
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_ENTRY_MAX = 1 << 22
_ENTRIES_MAX = 512
_ENTRY = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{16}")  # a key, or one that a killed run was writing
_VARIABLE = "REUSEPORT_TOOL_CACHE"


class Store:
    """A folder of entries. Every failure to read or to write is an absent entry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """The content of an entry, None where there is none that can be trusted."""
        try:
            with _opened(self.folder) as directory:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(name, flags, dir_fd=directory), "rb") as file:
                    if not folders.is_private(os.fstat(file.fileno()), stat.S_IFREG):
                        return None
                    data = file.read(_ENTRY_MAX)
        except OSError:
            return None
        checksum, body = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        return body if checksum == _checksum(name, body) else None

    def put(self, name: str, body: bytes) -> bool:
        """Write an entry in place of the one of this name. Returns whether that worked."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(self.folder) as directory:
                aside = f".{name}.{os.urandom(8).hex()}"
                try:
                    _write(directory, aside, _checksum(name, body) + body)
                    os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)  # commit point
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(aside, dir_fd=directory)
                    return False
                _forget_oldest(directory)
        except OSError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove an entry, if there is one."""
        with contextlib.suppress(OSError), _opened(self.folder) as directory:
            os.unlink(name, dir_fd=directory)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The descriptor of a private folder. Raises OSError, also when others own it or can write it."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not folders.is_private(os.fstat(directory), stat.S_IFDIR):
            raise PermissionError(f"{folder} is not private")
        yield directory
    finally:
        os.close(directory)


def _checksum(name: str, body: bytes) -> bytes:
    return hashlib.sha256(b"\0".join((_FORMAT, name.encode(), body))).digest()


def _write(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)


def _forget_oldest(directory: int) -> None:
    """Keep the cache small: kernels and versions of the tool come and go. Other files in the folder are not ours."""
    names = [name for name in os.listdir(directory) if _ENTRY.fullmatch(name)]
    if len(names) <= _ENTRIES_MAX:
        return
    oldest = sorted(names, key=lambda name: os.lstat(name, dir_fd=directory).st_mtime)
    for name in oldest[: len(names) - _ENTRIES_MAX]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


_only: Store | None = None


@contextlib.contextmanager
def only_in(folder: Path) -> Iterator[Store]:
    """Inside, the cache of this process is this folder."""
    global _only
    _only = Store(folder)
    try:
        yield _only
    finally:
        _only = None


def store() -> Store | None:
    """The cache of this run: $REUSEPORT_TOOL_CACHE, /var/cache/reuseport-tool for root, else below the user's cache
    folder. None where the variable is empty, or there is no home."""
    if _only is not None:
        return _only
    named = os.environ.get(_VARIABLE)
    if named is not None:
        return Store(Path(named)) if named else None
    if os.geteuid() == 0:
        return Store(Path("/var/cache/reuseport-tool"))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Store(Path(base) / "reuseport-tool") if os.path.isabs(base) else None


@functools.cache
def kernel_identity() -> str:
    """What tells one build of a kernel from another: release, version and build id."""
    about = os.uname()
    parts = [about.release, about.version, about.machine]
    for path in ("/sys/kernel/notes", "/sys/kernel/btf/vmlinux"):
        try:
            # The notes have the build id; the type information is large and belongs to the build, so its size will do.
            parts.append(Path(path).read_bytes().hex() if path.endswith("notes") else str(os.stat(path).st_size))
        except OSError:
            parts.append("none")
    return "\n".join(parts)


@record
class CompileRequest:
    """What code is asked for.

    Attributes:
        text, name: of the C file.
        constants: that it is compiled with.
        may_be_kept: whether the constants and our headers are all that the code depends on.
    """

    text: bytes
    name: str
    constants: Mapping[str, int]
    may_be_kept: bool

    @functools.cached_property
    def _key(self) -> str:
        constants = "\n".join(f"{name}={value}" for name, value in sorted(self.constants.items()))
        digest = ours().digest
        parts = [_FORMAT, kernel_identity().encode(), digest, self.name.encode(), constants.encode(), self.text]
        return hashlib.sha256(_pack(parts)).hexdigest()

    def find(self, compiled_by: str | None) -> Code | None:
        """The code in the cache; by this build of the compiler, or, for None, by any."""
        chosen = self._store()
        body = chosen.get(self._key) if chosen else None
        if body is None:
            return None
        by, license_text, *functions = _unpack(body)
        if compiled_by is not None and by != compiled_by.encode():
            return None
        names = [name.decode() for name in functions[::2]]
        return Code(license=license_text, functions=dict(zip(names, functions[1::2], strict=True)))

    def keep(self, code: Code, compiled_by: str | None) -> None:
        """Put code that was compiled just now into the cache."""
        chosen = self._store()
        if chosen is None or compiled_by is None:
            return
        functions = [part for name, text in code.functions.items() for part in (name.encode(), text)]
        chosen.put(self._key, _pack([compiled_by.encode(), code.license, *functions]))

    def _store(self) -> Store | None:
        return store() if self.may_be_kept else None


def includes_only_ours(text: bytes) -> bool:
    """Whether a stranger's C text includes our headers only. A word that may be a directive counts as one."""
    joined = text.replace(b"\\\n", b"")
    if re.search(rb"include|embed|import|\?\?", _PLAIN_INCLUDE.sub(b"", joined)):
        return False
    # What is not in our folder is looked for in the folder of the text.
    return all((compiler.bpf_dir() / match[1].decode()).is_file() for match in _PLAIN_INCLUDE.finditer(joined))


_PLAIN_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([a-z_]+(?:/[a-z_]+)*\.h)"[ \t]*$', re.MULTILINE)


@record
class OurFiles:
    """All files of the folder of C programs: their contents by path, and a digest of both."""

    texts: Mapping[Path, bytes]
    digest: bytes

    @classmethod
    def read(cls, root: Path) -> OurFiles:
        """As they are now."""
        texts = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        parts = [part for path, text in texts.items() for part in (bytes(path.relative_to(root)), text)]
        return cls(texts=texts, digest=hashlib.sha256(_pack(parts)).digest())


def ours() -> OurFiles:
    """The folder of C programs as this process first saw it: its Python code belongs to these, whatever comes later."""
    return _first_seen(compiler.bpf_dir())


_first_seen = functools.cache(OurFiles.read)


def require_unchanged() -> None:
    """Raises ToolError where an upgrade has replaced our C programs since ours(): the compiler reads the new ones."""
    if OurFiles.read(compiler.bpf_dir()).digest != ours().digest:
        raise ToolError("the tool was replaced by another version while it ran", hint="start it again")


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("=I", len(part)) + part for part in parts)


def _unpack(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("=I", data, at)
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return parts
