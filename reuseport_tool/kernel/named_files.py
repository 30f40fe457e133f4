"""Files that the operator names, opened for writing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from reuseport_tool.errors import Conflict
from reuseport_tool.kernel.folders import is_private


def open_for_writing(file: Path, flags: int) -> int:
    """A descriptor of a file that is made where there is none; its content stays.

    In a folder that only we and root can change, every file is what the operator means: also a link, a pipe or a
    device. Elsewhere somebody else may have put it there, so it must be a plain file of ours or of the folder's owner
    with no other name. The kernel refuses the same in folders with the sticky bit by fs.protected_symlinks,
    protected_regular, protected_fifos and protected_hardlinks, which are off by default: systemd sets them.

    Args:
        flags: O_APPEND, or 0.

    Raises:
        Conflict: somebody else may have put it there.
        OSError: from open(2).
    """
    folder = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        above = os.fstat(folder)
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        if is_private(above, stat.S_IFDIR):
            return os.open(file.name, flags, 0o666, dir_fd=folder)
        return _open_guarded(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK, folder, {os.geteuid(), above.st_uid})
    finally:
        os.close(folder)


def _open_guarded(file: Path, flags: int, folder: int, owners: set[int]) -> int:
    there = _status(file.name, folder)
    if there is not None and not _is_plain(there, owners):
        raise _planted(file, there)
    fd = os.open(file.name, flags, 0o666, dir_fd=folder)
    opened = os.fstat(fd)
    if not _is_plain(opened, owners):
        os.close(fd)
        raise _planted(file, opened)
    os.set_blocking(fd, True)
    return fd


def _status(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_plain(status: os.stat_result, owners: set[int]) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid in owners and status.st_nlink == 1


def _planted(file: Path, status: os.stat_result) -> Conflict:
    what = "file" if stat.S_ISREG(status.st_mode) else "link, pipe or device"
    return Conflict(
        f"{file} is a {what} of uid {status.st_uid} in a folder that others can write to",
        hint="name a file in a folder that nobody else can write to",
    )
