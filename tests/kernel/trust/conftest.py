"""Places that a user without rights can write to, and files of root that a link can lead to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reuseport_tool.kernel import libc
from tests.kernel.trust.hostile import folder_of


@pytest.fixture(autouse=True, scope="module")
def every_user_reads_the_checkout(readable: None) -> None:
    """For all tests here."""


@pytest.fixture
def open_bpffs(root: None) -> Iterator[Path]:
    """A bpffs that everybody can write to, where everybody can reach it."""
    with folder_of(0o755) as folder:
        mount = folder / "bpf"
        mount.mkdir()
        libc.mount("bpf", str(mount), "bpf", data="mode=1777")
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def victim() -> Iterator[Path]:
    """Files of root that a link can lead to."""
    with folder_of(0o755) as folder:
        (folder / "state").mkdir()
        for name in ("precious", "state/program", "journal", "state/generation_1"):
            (folder / name).write_text("precious")
        yield folder


@pytest.fixture
def sticky() -> Iterator[Path]:
    """A folder like /tmp, in which everybody may make files."""
    with folder_of(0o1777) as folder:
        yield folder
