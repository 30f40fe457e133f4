"""Debian's packages by an apt of our own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vagrant.qemu.debian import Apt
from vagrant.qemu.errors import VmError


@pytest.fixture
def full_disk(root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], check=True)
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(tmp_path))
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_named_before_apt_starts(full_disk: Path) -> None:
    with pytest.raises(VmError, match="needs 200 MB on the disk of"):
        Apt("bookworm").refresh()
    assert not list(full_disk.rglob("apt.conf"))
