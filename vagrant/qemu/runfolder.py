"""One folder for each VM, shared with its guest; the folders of runs that were killed are swept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vagrant.qemu.cache import cache_dir, locked, need_space, say

SPACE_MB = 100


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder that only this run uses, removed at its end together with a QEMU that is still there."""
    runs = cache_dir() / "runs"
    runs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        with locked(runs / ".lock", "starting a VM"):
            _sweep(runs)
            need_space(runs, SPACE_MB, "a run")
            folder = Path(tempfile.mkdtemp(prefix="vm-", dir=runs))
            stack.callback(_remove, folder)
            alive = stack.enter_context((folder / "alive").open("w"))
            fcntl.flock(alive, fcntl.LOCK_EX)
        # Only descriptors that are inherited keep a lock alive, and Python's are not.
        (folder / "tmp").mkdir()
        (folder / "results").mkdir()
        yield folder


def _sweep(runs: Path) -> None:
    """Remove the folders whose owner is gone. Under the lock of `runs`."""
    for folder in runs.glob("vm-*"):
        if not _owned(folder):
            say("removing what a killed run left")
            _remove(folder)


def _owned(folder: Path) -> bool:
    """Whether the run of this folder still holds its lock."""
    with contextlib.suppress(FileNotFoundError), (folder / "alive").open("r+") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove(folder: Path) -> None:
    end_qemu(folder)
    shutil.rmtree(folder, ignore_errors=True)


def end_qemu(folder: Path) -> None:
    """Kill the QEMU of this folder, if it runs. Its command line proves that the pid is still its own."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "qemu.pid").read_text())
        pidfd = os.pidfd_open(pid)
        try:
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
