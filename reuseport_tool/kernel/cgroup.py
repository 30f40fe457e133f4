"""cgroup v2: where it is, which folder is one, and a throw-away one for proofs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported
from reuseport_tool.kernel import libc

_CGROUP2_MAGIC = 0x63677270  # include/uapi/linux/magic.h


def root() -> Path:
    """Where it is mounted, which on a hybrid host is not /sys/fs/cgroup. Raises Unsupported."""
    with open("/proc/mounts", errors="surrogateescape") as file:
        mounts = [line.split() for line in file]
    found = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if found is None:
        raise Unsupported("no cgroup2 file system is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")
    return Path(found)


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
    for line in Path("/proc/self/cgroup").read_text(errors="surrogateescape").splitlines():
        if line.startswith("0::"):
            return root() / line[len("0::/") :]
    return root()


def service(pid: int) -> str | None:
    """The cgroup of the systemd service that a process is in, None when it is in none.

    The path up to the last part that ends in `.service`; the services of a user's manager are below user@UID.service,
    which is a service of many.
    """
    try:
        with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return None
    path = next((fields[2] for fields in lines if not fields[1] or fields[1] == "name=systemd"), "")
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        name = parts[end - 1]
        if name.endswith(".service") and not name.startswith("user@"):
            return "/".join(parts[:end])
    return None


@contextlib.contextmanager
def throw_away() -> Iterator[Path]:
    """A new cgroup with this process in it, which is back in its own at the end.

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
