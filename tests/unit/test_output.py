"""Output that cannot be written, in every encoding: no traceback and the right exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TOOL = f"{sys.executable} -m reuseport_tool"
COMMANDS = ["migrate-req", "--json migrate-req", "--help", "--version", "status --help", "completion bash"]


def sh(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("where", "says"), [(">/dev/full", "No space left"), (">&-", "Bad file descriptor")])
def test_a_stdout_that_takes_nothing(command: str, where: str, says: str) -> None:
    done = sh(f"{TOOL} {command} {where}")
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone(command: str) -> None:
    done = sh(f"{TOOL} {command} | true")
    assert done.returncode in (0, 1)  # the reader may go later than the writer
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("migrate-req", 0), ("status nonsense", 2), ("nonsense", 2)])
def test_a_stderr_that_takes_nothing(command: str, code: int, where: str) -> None:
    assert sh(f"{TOOL} {command} {where}").returncode == code


def test_nothing_open_at_all() -> None:
    assert sh(f"{TOOL} migrate-req <&- >&- 2>&-").returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8", "utf-16"])
@pytest.mark.parametrize("command", ["doctor", "--json doctor", "status", "status größe"])
def test_every_encoding(command: str, encoding: str) -> None:
    done = sh(f"{TOOL} {command}", PYTHONIOENCODING=encoding)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == (2 if "größe" in command else done.returncode)
    if command == "doctor":
        assert done.stdout


def test_the_c_locale() -> None:
    done = sh(f"{TOOL} doctor", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert "Traceback" not in done.stderr
    assert done.stdout.isascii()
