"""cgroup v2: where it is, which folder is one, and a throw-away one for proofs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported
from reuseport_tool.kernel import libc

_MOUNTS = Path("/proc/mounts")
_CGROUP2_MAGIC = 0x63677270  # include/uapi/linux/magic.h


def root() -> Path:
    """Where it is mounted, which on a hybrid host is not /sys/fs/cgroup. Raises Unsupported."""
    for line in _MOUNTS.read_bytes().split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 2 and fields[2] == b"cgroup2":
            return Path(os.fsdecode(_unescaped(fields[1])))
    raise Unsupported("no cgroup2 file system is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")


def _unescaped(name: bytes) -> bytes:
    """The kernel writes space, tab, line feed and backslash as octal numbers, and nothing else: seq_escape()."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), name)


def open_folder(folder: Path) -> int:
    """A descriptor of a cgroup's folder. Raises NotFound."""
    try:
        if libc.filesystem_type(str(folder)) == _CGROUP2_MAGIC and folder.is_dir():
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"no such cgroup: {folder}", hint=f"cgroup2 is mounted at {root()}") from error
    raise NotFound(f"not a folder of cgroup2: {folder}", hint=f"cgroup2 is mounted at {root()}")


def by_id(identity: int) -> Path | None:
    """The folder of a cgroup with this inode, None when it is gone."""
    for folder, _, _ in os.walk(root()):
        with contextlib.suppress(OSError):  # removed meanwhile
            if os.stat(folder).st_ino == identity:
                return Path(folder)
    return None


def processes(folder: Path) -> list[int]:
    """The processes in a cgroup and in those below it."""
    found: list[int] = []
    for inside, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):  # gone, or a threaded one
            found += map(int, (Path(inside) / "cgroup.procs").read_text().split())
    return found


def own() -> Path:
    """The cgroup that this process is in."""
    for line in Path("/proc/self/cgroup").read_bytes().split(b"\n"):
        if line.startswith(b"0::"):
            return root() / os.fsdecode(line[len(b"0::/") :])
    return root()


def service(pid: int) -> str | None:
    """The cgroup of the systemd service that a process is in, None when it is in none.

    It is the path up to the last part that ends in `.service`: a user's manager, user@UID.service, has its services
    below it.
    """
    with contextlib.suppress(OSError):
        return service_in(Path(f"/proc/{pid}/cgroup").read_bytes())
    return None


def service_in(content: bytes) -> str | None:
    """The same from a file /proc/PID/cgroup."""
    # A name has no line feed, but perhaps a carriage return, at which text would be cut.
    lines = [os.fsdecode(line).split(":", 2) for line in content.split(b"\n") if line.count(b":") >= 2]
    path = next((fields[2] for fields in lines if not fields[1] or fields[1] == "name=systemd"), "")
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        name = parts[end - 1]
        if name.endswith(".service") and not name.startswith("user@"):
            return "/".join(parts[:end])
    return None


@contextlib.contextmanager
def throw_away() -> Iterator[Path]:
    """Inside, this process is in a new cgroup; at the end it is back in its own.

    Sockets keep the cgroup that they were made in. Raises Unsupported, MissingCapability.
    """
    before = own()
    folder = root() / f"reuseport-tool-{os.getpid()}"
    try:
        folder.mkdir()
    except PermissionError as error:
        raise MissingCapability("making a cgroup is not permitted", hint="run as root") from error
    try:
        _enter(folder)
        yield folder
    finally:
        _enter(before)
        folder.rmdir()


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))
