"""bpffs: find one or mount it, and pins in places that only we can change."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from reuseport_tool.errors import MissingCapability, NotFound, ToolError
from reuseport_tool.kernel import bpf, folders, libc, netns
from reuseport_tool.kernel.folders import Foreign, Place

HOME = "reuseport-tool"
"""The folder that everything of ours is in, in whichever bpffs."""
_BPF_FS_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h
_USUAL = Path("/sys/fs/bpf")
_OWN = Path("/run/reuseport-tool/bpffs")
_OF_INIT = Path("/proc/1/root")
_CLOSED = "mode=0700"
MOUNT = f"mount -t bpf -o {_CLOSED} bpf"
"""The command that a hint names: a mount without the mode can be written to by everybody."""


def is_bpffs(folder: Path) -> bool:
    """Whether a folder exists and is on a bpffs."""
    try:
        return libc.filesystem_type(str(folder)) == _BPF_FS_MAGIC
    except OSError:
        return False


def find(folder: Path | None) -> Path:
    """The folder of a bpffs to keep pins in: the given one, or a usual one.

    The usual ones are /sys/fs/bpf and our own mount, here and where init sees them: a command of `ip netns exec` has a
    /sys of its own, without the bpffs. One that has pins of ours comes first. One in which somebody else has taken
    our folder's name is left to them.

    Raises:
        NotFound: the folder that was named is not on a bpffs, or none is mounted; the hint says how.
        Foreign: somebody else has our folder's name in every one.
    """
    if folder is not None:
        if not is_bpffs(folder):
            raise NotFound(f"no bpffs at {folder}", hint=f"mount one there: {MOUNT} {folder}")
        return folder
    there = [candidate for candidate in _candidates() if is_bpffs(candidate)]
    if not there:
        raise NotFound("no bpffs is mounted", hint=f"mount one: {MOUNT} {_USUAL}")
    taken = {candidate: _is_ours(candidate) for candidate in there}
    for answer in (True, None):
        for candidate in there:
            if taken[candidate] is answer:
                return candidate
    with (Place(there[0]) / HOME).opened():  # says whose it is
        return there[0]


def _candidates() -> list[Path]:
    seen = (_USUAL, _OWN)
    return [*seen, *(_OF_INIT / path.relative_to("/") for path in seen)]


def _is_ours(folder: Path) -> bool | None:
    """Whether our folder in a bpffs is ours; None where there is none, or we may not look."""
    try:
        with (Place(folder) / HOME).opened():
            return True
    except Foreign:
        return False
    except (OSError, ToolError):
        return None


def closed_to_us() -> Foreign | None:
    """Says whose pins are in a usual place that is closed to us; None for root, whose tool does not ask others."""
    if os.geteuid() == 0:
        return None
    for candidate in filter(is_bpffs, _candidates()):
        try:
            with (Place(candidate) / HOME).opened():
                pass
        except Foreign as error:
            return error
        except (OSError, ToolError):
            pass
    return None


def find_or_mount(folder: Path | None) -> Path:
    """As find(), but mounts a bpffs of our own where there is none for us.

    Raises:
        NotFound: as find(); or what is mounted here would end with this command.
        MissingCapability: mounting is not permitted.
        Foreign: as find(), and mounting is not permitted.
    """
    try:
        return find(folder)
    except (NotFound, Foreign) as error:
        if folder is not None:
            raise
        return _mount(error)


def _mount(why: NotFound | Foreign) -> Path:
    if not _mounts_last():
        raise NotFound(
            "no bpffs here outlives this command: it has a mount namespace of its own, as 'ip netns exec' makes one",
            hint=f"run it without: reuseport-tool --netns {netns.name()} …; or mount one outside: {MOUNT} {_USUAL}",
        ) from why
    try:
        home = Place(_OWN.parent.parent, _OWN.parts[-2:], forbidden=0o022)
        home.make()
        libc.mount("bpf", str(_OWN), "bpf", data=_CLOSED)
    except (OSError, ToolError) as error:
        if isinstance(why, Foreign):
            raise why from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise MissingCapability(
            f"no bpffs is mounted, and mounting one at {_OWN} failed: {reason}", hint=f"as root: {MOUNT} {_USUAL}"
        ) from error
    return _OWN


def _mounts_last() -> bool:
    """Whether this is the mount namespace of init, or that cannot be told."""
    try:
        return os.stat("/proc/self/ns/mnt").st_ino == os.stat("/proc/1/ns/mnt").st_ino
    except OSError:
        return True


def pin(handle: bpf.Handle, place: Place) -> None:
    """Give an object a name, so that it outlives the process. Raises ToolError, also where the name is taken."""
    with place.parent.opened() as folder, folders.for_its_owner():
        handle.pin(f"/proc/self/fd/{folder}/{place.name}", str(place))


def open_map(place: Place) -> bpf.Map:
    """A pinned map. Raises FileNotFoundError, and Conflict for what is not one of ours."""
    with _path(place) as path:
        return bpf.Map.open(path, str(place))


def open_program(place: Place) -> bpf.Program:
    """A pinned program. Raises FileNotFoundError, and Conflict for what is not one of ours."""
    with _path(place) as path:
        return bpf.Program.open(path, str(place))


def pinned_at_device(place: Place) -> int:
    """The device of a pinned tcx link; 0 when the device is gone. Raises FileNotFoundError, and Conflict."""
    with _path(place) as path, bpf.Link.open(path, str(place)) as link:
        return link.device()


@contextlib.contextmanager
def _path(place: Place) -> Iterator[str]:
    """A path that leads to this very file, whatever its name may mean a moment later."""
    with place.file() as fd:
        yield f"/proc/self/fd/{fd}"
