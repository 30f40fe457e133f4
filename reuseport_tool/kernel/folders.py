"""Folders that only their owner can change: every access goes by directory descriptors and follows no link."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN_HINT = "run as its owner, or name a bpffs of your own by --bpffs (docs/rights.md)"
_LOOK_HINT = "it is not this tool's: look at it, then remove it"


class Foreign(Conflict):
    """A folder or a file in the place of ours belongs to somebody else, or is open to others."""


@dataclass(frozen=True)
class Place:
    """A folder or a file below `base`: a name, not a handle.

    Whoever chose `base` vouches for it. Every operation walks from there, one component at a time and without
    following links, and trusts a folder only if it belongs to our effective uid and grants others nothing of
    `forbidden`. So nobody else can have made, replaced or filled what it acts on. An operation raises Foreign for a
    folder that is not trusted, Conflict for what is no folder, and MissingCapability where we may not look.
    """

    base: Path
    parts: tuple[str, ...] = ()
    forbidden: int = 0o077

    def __truediv__(self, name: str) -> Place:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError(f"not the name of a file: {name!r}")
        return Place(self.base, (*self.parts, name), self.forbidden)

    def __str__(self) -> str:
        return str(self.base.joinpath(*self.parts))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def parent(self) -> Place:
        return Place(self.base, self.parts[:-1], self.forbidden)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of this folder. Raises FileNotFoundError where there is none."""
        fd = self._walk(make=False)
        try:
            yield fd
        finally:
            os.close(fd)

    def make(self) -> None:
        """Create this folder and those above it, up to `base`, with mode 0700."""
        os.close(self._walk(make=True))

    def _walk(self, *, make: bool) -> int:
        fd = _open_base(self.base)
        try:
            for depth, name in enumerate(self.parts, 1):
                place = Place(self.base, self.parts[:depth], self.forbidden)
                if make:
                    _make(fd, place)
                below = _open_trusted(fd, name, place)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def file(self) -> Iterator[int]:
        """An O_PATH descriptor of this file, which must be a regular one of ours. Raises FileNotFoundError."""
        with self.parent.opened() as folder:
            fd = os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            info = os.fstat(fd)
            if info.st_uid != os.geteuid():
                raise _foreign(self, info)
            if not stat.S_ISREG(info.st_mode):
                raise Conflict(f"not a file: {self}", hint=_LOOK_HINT)
            yield fd
        finally:
            os.close(fd)

    def info(self) -> os.stat_result | None:
        """lstat(2) of what has this name, None for nothing."""
        try:
            with self.parent.opened() as folder:
                return os.stat(self.name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self.info() is not None

    def is_folder(self) -> bool:
        info = self.info()
        return info is not None and stat.S_ISDIR(info.st_mode)

    def names(self) -> list[str]:
        """What is in this folder, sorted; nothing where it does not exist."""
        try:
            with self.opened() as folder:
                return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def unlink(self) -> None:
        """Remove this file or link; nothing is no error."""
        with contextlib.suppress(FileNotFoundError), self.parent.opened() as folder:
            os.unlink(self.name, dir_fd=folder)

    def remove(self) -> None:
        """Remove this file, or this folder with all that is in it; nothing is no error."""
        with contextlib.suppress(FileNotFoundError), self.parent.opened() as folder:
            _remove(folder, self.name, self)

    def rename(self, to: Place) -> None:
        """rename(2). Raises FileNotFoundError."""
        with self.parent.opened() as folder, to.parent.opened() as there:
            os.rename(self.name, to.name, src_dir_fd=folder, dst_dir_fd=there)


def is_private(status: os.stat_result, kind: int) -> bool:
    """Whether it is of this kind (S_IF…), and only we or root can write it."""
    is_ours = status.st_uid in (0, os.geteuid())
    return stat.S_IFMT(status.st_mode) == kind and is_ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _open_base(base: Path) -> int:
    try:
        fd = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise _not_permitted(str(base)) from error
    except NotADirectoryError as error:
        raise Conflict(f"not a folder: {base}", hint="name a folder of a bpffs by --bpffs") from error
    info = os.fstat(fd)
    if info.st_mode & 0o002 and not info.st_mode & stat.S_ISVTX:
        os.close(fd)
        raise Foreign(f"anybody can rename files in {base}", hint=f"close it: chmod 0700 {base}")
    return fd


def _open_trusted(folder: int, name: str, place: Place) -> int:
    try:
        fd = os.open(name, _FOLDER, dir_fd=folder)
    except (NotADirectoryError, PermissionError) as error:
        raise _refusal(folder, name, place) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refusal(folder, name, place) from error
        raise
    info = os.fstat(fd)
    if info.st_uid == os.geteuid() and not info.st_mode & place.forbidden:
        return fd
    os.close(fd)
    raise _foreign(place, info)


def _refusal(folder: int, name: str, place: Place) -> ToolError:
    """Why what has this name cannot be opened as a folder."""
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return _not_permitted(str(place.parent))
    if info.st_uid != os.geteuid():
        return _foreign(place, info)
    if stat.S_ISDIR(info.st_mode):
        mode = stat.S_IMODE(info.st_mode)
        return Conflict(f"{place} has the mode {mode:04o}, which is closed to us", hint=f"open it: chmod 0700 {place}")
    return Conflict(f"not a folder: {place}", hint=_LOOK_HINT)


def _foreign(place: Place, info: os.stat_result) -> Foreign:
    if info.st_uid != os.geteuid():
        return Foreign(f"{place} belongs to {user(info.st_uid)}, not to {user(os.geteuid())}", hint=_OWN_HINT)
    return Foreign(
        f"{place} has the mode {stat.S_IMODE(info.st_mode):04o}, which is open to others",
        hint=f"look at what is in it, then close it: chmod 0700 {place}",
    )


def _not_permitted(path: str) -> MissingCapability:
    return MissingCapability(f"not permitted to look into {path}", hint=_OWN_HINT)


@contextlib.contextmanager
def for_its_owner() -> Iterator[None]:
    """Inside, what is made is open to its owner, whatever the umask: with 0777 he could not use it again."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _make(folder: int, place: Place) -> None:
    try:
        with for_its_owner():
            os.mkdir(place.name, 0o700, dir_fd=folder)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise MissingCapability(
            f"not permitted to write to {place.parent}",
            hint="run as root, or name a bpffs of your own by --bpffs (docs/rights.md)",
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ToolError(f"making the folder {place} failed: {error.strerror}") from error


def _remove(folder: int, name: str, place: Place) -> None:
    try:
        os.unlink(name, dir_fd=folder)
        return
    except IsADirectoryError:
        pass
    inner = os.open(name, _FOLDER, dir_fd=folder)
    try:
        info = os.fstat(inner)
        if info.st_uid != os.geteuid():
            raise _foreign(place, info)
        for entry in os.listdir(inner):
            _remove(inner, entry, place / entry)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)


def user(uid: int) -> str:
    """A uid for a message, with the user's name if it has one."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


@contextlib.contextmanager
def lock(place: Place, wait: Callable[[int], bool]) -> Iterator[None]:
    """Hold the flock(2) of a folder, creating it; it ends with the process, however that dies.

    Folders that are empty at the end are removed again, up to `base`, which stays.

    Args:
        wait: called with the pid of the holder (0 if unknown) when the lock is taken; whether to try again.

    Raises:
        Conflict: the lock is taken and `wait` said no.
    """
    fd = _locked(place, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ToolError):
            remove_empty(place)
        os.close(fd)


def remove_empty(place: Place) -> None:
    """Remove a folder and those above it as far as they are empty, but not `base`. Raises OSError at the first one."""
    while place.parts:
        with place.parent.opened() as above:
            os.rmdir(place.name, dir_fd=above)
        place = place.parent


def _locked(place: Place, wait: Callable[[int], bool]) -> int:
    while True:
        try:
            fd = place._walk(make=True)
        except FileNotFoundError:  # the one before us removed it
            if place.base.exists():
                continue
            raise NotFound(f"{place.base} is gone", hint="mount it again, or name another folder by --bpffs") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = place.info()
            if now is not None and now.st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            holder = lock_holder(os.fstat(fd))
            if not wait(holder):
                os.close(fd)
                raise Conflict(
                    f"another run holds the lock of {place.name}: process {holder or '(unknown)'}",
                    hint="wait until it is done, or give --wait",
                ) from None
        os.close(fd)


def await_lock(place: Place) -> None:
    """Block until nobody holds the flock(2) of a folder, or it is gone: for a thread that may end with its process."""
    with contextlib.suppress(FileNotFoundError), place.opened() as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)


def is_locked(place: Place) -> bool:
    """Whether some run holds the flock(2) of a folder."""
    info = place.info()
    return info is not None and lock_holder(info) != 0


def lock_holder(file: os.stat_result) -> int:
    """The pid that holds a flock on a file, from /proc/locks; 0 when none is found.

    Other file systems have the same inode numbers, and anybody may lock a file of his own there.
    """
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with open("/proc/locks") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == wanted:
                return int(fields[4])
    return 0
