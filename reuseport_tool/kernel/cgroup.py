"""cgroup v2: where it is, which folder is one, and a throw-away one for proofs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported
from reuseport_tool.kernel import libc

_CGROUP2_MAGIC = 0x63677270  # include/uapi/linux/magic.h


def mount_point() -> Path:
    """Where cgroup2 is mounted; on a hybrid host that is not /sys/fs/cgroup. Raises Unsupported."""
    with open("/proc/mounts") as file:
        for line in file:
            _, target, kind, *_ = line.split()
            if kind == "cgroup2":
                return Path(target)
    raise Unsupported("no cgroup2 file system is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")


def open_folder(folder: Path) -> int:
    """A descriptor of a cgroup's folder. Raises NotFound."""
    try:
        if libc.filesystem_type(str(folder)) == _CGROUP2_MAGIC and folder.is_dir():
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"no such cgroup: {folder}", hint=f"cgroup2 is mounted at {mount_point()}") from error
    raise NotFound(f"not a folder of cgroup2: {folder}", hint=f"cgroup2 is mounted at {mount_point()}")


def by_id(identity: int) -> Path | None:
    """The folder of a cgroup with this inode, None when it is gone."""
    for folder, _, _ in os.walk(mount_point()):
        if os.stat(folder).st_ino == identity:
            return Path(folder)
    return None


def own() -> Path:
    """The cgroup that this process is in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return mount_point() / line[len("0::/") :]
    return mount_point()


@contextlib.contextmanager
def throw_away() -> Iterator[Path]:
    """A new cgroup with this process in it, which is back in its own at the end.

    Sockets keep the cgroup that they were made in. Raises Unsupported, MissingCapability.
    """
    before = own()
    folder = mount_point() / f"reuseport-tool-{os.getpid()}"
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
