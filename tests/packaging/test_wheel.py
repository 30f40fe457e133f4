"""`pip install .` into an empty venv gives a working tool: the C programs travel in the wheel."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tool import Tool

CHECKOUT = Path(__file__).parents[2]
_LIMIT_S = 300


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh venv. Made before a test enters its namespace, which has no way out."""
    venv = tmp_path_factory.mktemp("wheel") / "venv"
    python = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run([python, "-m", "venv", "--system-site-packages", venv], check=True, timeout=_LIMIT_S)
    install = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", CHECKOUT]
    subprocess.run(install, check=True, timeout=_LIMIT_S)
    return venv / "bin" / "reuseport-tool"


def test_an_installed_wheel_attaches(installed: Path, tool: Tool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = str(listener.getsockname()[1])
        # The listener's process is this test: the command finds it as any other.
        for verb in ("attach", "status", "detach"):
            command = [installed, "--bpffs", str(tool.bpffs), verb, port]
            done = subprocess.run(command, timeout=60, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
