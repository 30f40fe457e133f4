"""The cache folder: kernels by version, apt's private state, and one folder for each run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vagrant.qemu.errors import VmError

CHECKOUT = Path(__file__).resolve().parents[2]
LOCK_DEADLINE_S = 3600.0
POLL_S = 0.2


def cache_dir() -> Path:
    """REUSEPORT_TOOL_CACHE, or ~/.cache/reuseport-tool."""
    configured = os.environ.get("REUSEPORT_TOOL_CACHE")
    path = Path(configured) if configured else Path.home() / ".cache" / "reuseport-tool"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def say(text: str) -> None:
    """Progress goes to stderr: stdout belongs to the guest's command."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def need_space(path: Path, megabytes: int, what: str) -> None:
    """Raises VmError when less than `megabytes` are free where `path` is."""
    free = shutil.disk_usage(path).free // 2**20
    if free < megabytes:
        raise VmError(
            f"{what} needs {megabytes} MB on the disk of {path}, and {free} MB are free",
            hint="free some space, or set REUSEPORT_TOOL_CACHE to a folder on another disk",
        )


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on the file; says so when another run holds it, and waits.

    Raises:
        VmError: the lock was not to be had within LOCK_DEADLINE_S.
    """
    with path.open("w") as file:
        if not _try_lock(file.fileno()):
            say(f"another run is at {what}: waiting for it")
            deadline = time.monotonic() + LOCK_DEADLINE_S
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise VmError(f"another run has been at {what} for {LOCK_DEADLINE_S:.0f} s")
                time.sleep(POLL_S)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def built_aside(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` by one rename when the block succeeds, else it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=target.parent))
    try:
        aside.chmod(0o755)
        yield aside
        aside.rename(target)  # the commit point
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_asides(parent: Path) -> None:
    """Remove what killed runs left. Only under the lock of `parent`."""
    for path in parent.glob(".aside-*"):
        shutil.rmtree(path, ignore_errors=True)
