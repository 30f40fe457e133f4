"""A user without rights, what that user plants, and pictures of what must not change."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

USER = 65534
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]


@contextlib.contextmanager
def folder_of(mode: int) -> Iterator[Path]:
    """A folder of root's below /tmp, which every user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, mode)
        yield Path(name)


def as_user(script: str) -> None:
    subprocess.run([*AS_USER, "sh", "-c", script], check=False, capture_output=True)


def picture(*folders: Path) -> list[tuple[str, int, int, int, str]]:
    """Everything in folders: name, mode, owner, inode and content."""
    seen = []
    for folder in folders:
        for path in sorted([folder, *folder.rglob("*")]):
            info = path.lstat()
            content = os.readlink(path) if path.is_symlink() else ""
            if stat.S_ISREG(info.st_mode) and not folder.name.startswith("bpf"):
                content = path.read_text()
            seen.append((str(path), info.st_mode, info.st_uid, info.st_ino, content))
    return seen
