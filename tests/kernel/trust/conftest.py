"""Places that a user without rights can write to, and files of root that a link can lead to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.kernel import libc


@pytest.fixture(autouse=True, scope="module")
def every_user_reads_the_checkout(readable: None) -> None:
    """For all tests here."""


@pytest.fixture
def open_bpffs(root: None) -> Iterator[Path]:
    """A bpffs that everybody can write to, where everybody can reach it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        mount = Path(folder) / "bpf"
        mount.mkdir()
        libc.mount("bpf", str(mount), "bpf", data="mode=1777")
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def victim() -> Iterator[Path]:
    """Files of root that a link can lead to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        place = Path(folder)
        (place / "state").mkdir()
        for name in ("precious", "state/program", "journal", "state/generation_1"):
            (place / name).write_text("precious")
        yield place


@pytest.fixture
def sticky() -> Iterator[Path]:
    """A folder like /tmp, in which everybody may make files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)
