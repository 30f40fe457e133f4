"""bpffs: find or mount it, the folders of our pins, the lock of a group."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound
from reuseport_tool.kernel import libc

_BPF_FS_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h
_USUAL = Path("/sys/fs/bpf")
_OWN = Path("/run/reuseport-tool/bpffs")


def is_bpffs(folder: Path) -> bool:
    """Whether a folder exists and is on a bpffs."""
    try:
        return libc.filesystem_type(str(folder)) == _BPF_FS_MAGIC
    except OSError:
        return False


def find(folder: Path | None) -> Path:
    """The bpffs folder to keep pins in: the given one, /sys/fs/bpf, or our own mount.

    Raises:
        NotFound: the folder that was named is not on a bpffs, or none is mounted; the hint says how.
    """
    if folder is not None:
        if not is_bpffs(folder):
            raise NotFound(f"no bpffs at {folder}", hint=f"mount one there: mount -t bpf bpf {folder}")
        return folder
    for candidate in (_USUAL, _OWN):
        if is_bpffs(candidate):
            return candidate
    raise NotFound("no bpffs is mounted", hint=f"mount one: mount -t bpf bpf {_USUAL}")


def find_or_mount(folder: Path | None) -> Path:
    """As find(), but mounts a bpffs in our own folder where none is."""
    try:
        return find(folder)
    except NotFound:
        if folder is not None:
            raise
    try:
        _OWN.mkdir(parents=True, exist_ok=True, mode=0o700)
        libc.mount("bpf", str(_OWN), "bpf")
    except OSError as error:
        raise MissingCapability(
            f"no bpffs is mounted, and mounting one at {_OWN} failed: {error.strerror}",
            hint=f"as root: mount -t bpf bpf {_USUAL}",
        ) from error
    return _OWN


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, each for its owner's eyes only. Raises MissingCapability, Conflict."""
    try:
        # One by one: mkdir(parents=True) gives the mode to the last one only.
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir(exist_ok=True, mode=0o700)
    except PermissionError as error:
        raise MissingCapability(
            f"not permitted to write to {folder.parent}",
            hint="run as root, or name a bpffs of your own by --bpffs: mount -t bpf bpf DIR && chown USER DIR",
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise Conflict(
            f"not a folder: {error.filename}", hint="it is not this tool's: look at it, then remove it"
        ) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder of pins and of folders of pins; what is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        for entry in folder.iterdir():
            if entry.is_dir():
                remove_folder(entry)
            else:
                entry.unlink()
        folder.rmdir()


@contextlib.contextmanager
def lock(folder: Path, wait: Callable[[int], bool]) -> Iterator[None]:
    """Hold the flock(2) of a folder, creating it; it ends with the process, however that dies.

    Folders that are empty at the end are removed again, up to the mount point.

    Args:
        wait: called with the pid of the holder (0 if unknown) when the lock is taken; whether to try again.

    Raises:
        Conflict: the lock is taken and `wait` said no.
    """
    fd = _locked(folder, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for empty in (folder, *folder.parents):
                empty.rmdir()
        os.close(fd)


def _locked(folder: Path, wait: Callable[[int], bool]) -> int:
    while True:
        try:
            make_folder(folder)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # the one before us removed it
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(folder).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            holder = lock_holder(os.fstat(fd).st_ino)
            if not wait(holder):
                os.close(fd)
                raise Conflict(
                    f"another run holds the lock of this group: process {holder or '(unknown)'}",
                    hint="wait until it is done",
                ) from None
        os.close(fd)


def await_lock(folder: Path) -> None:
    """Block until nobody holds the flock(2) of a folder, or it is gone."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)


def lock_holder(inode: int) -> int:
    """The pid that holds a flock on an inode, from /proc/locks; 0 when none is found."""
    with open("/proc/locks") as file:
        for line in file:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                return int(fields[4])
    return 0
