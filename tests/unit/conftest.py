"""A kernel in memory, which must be left without open descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.group import fake


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake.Kernel]:
    root = tmp_path / "bpffs"
    root.mkdir(0o700)
    made = fake.install(monkeypatch, root)
    yield made
    assert not made.fds, f"left open: {[entry.name for entry in made.fds.values()]}"
