"""A kernel in memory, which must be left without open descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.unit.group.fake.install import install
from tests.unit.group.fake.kernel import Kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kernel]:
    root = tmp_path / "bpffs"
    root.mkdir(0o700)
    made = install(monkeypatch, root)
    yield made
    assert not made.fds, f"left open: {[entry.name for entry in made.fds.values()]}"


# By default hypothesis fails an example that takes longer than 200 ms, which beside other work proves nothing.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
