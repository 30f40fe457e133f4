"""Where skipping is forbidden a skip fails the run, unless the kernel is older than what the test needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SOURCES = {
    "skip": ("def test_it():\n    pytest.skip('no reason')\n", 1),
    "skipif": ("@pytest.mark.skipif(True, reason='none')\ndef test_it():\n    pass\n", 1),
    "too old": ("def test_it():\n    raise KernelTooOld('came later')\n", 0),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("mode", ["require", "skip"])
def test_a_skip(kind: str, mode: str, tmp_path: Path) -> None:
    source, code = SOURCES[kind]
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_runtest_makereport\n")
    (tmp_path / "test_it.py").write_text(f"import pytest\nfrom tests.kernel.needs import KernelTooOld\n\n{source}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    environment = {**os.environ, "REUSEPORT_TOOL_KERNEL_TESTS": mode, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (code if mode == "require" else 0), done.stdout
