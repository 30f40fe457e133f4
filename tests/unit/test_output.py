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


STUCK = """
import fcntl, os, select, subprocess, sys, time
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
os.write(writer, bytes(4096))
tool = subprocess.Popen([sys.executable, "-m", "reuseport_tool", *sys.argv[2:]], **{sys.argv[1]: writer})
"""


def test_nobody_reads_the_messages() -> None:
    """A full pipe that nobody empties takes no message, and delays the exit for some seconds only."""
    script = STUCK + "sys.exit(tool.wait(40))"
    done = subprocess.run([sys.executable, "-c", script, "stderr", "status", "no"], timeout=60, check=False)
    assert done.returncode == 2


def test_a_stdout_that_does_not_block_is_waited_for() -> None:
    """Whoever shares a terminal or a pipe can set O_NONBLOCK for all. The tool sleeps until there is room."""
    script = (
        """
import os, select, subprocess, sys
subprocess.run([sys.executable, "-m", "reuseport_tool", *sys.argv[2:]], stdout=subprocess.DEVNULL, check=True)
plain_s = sum(os.times()[2:4])
"""
        + STUCK
        + """
os.set_blocking(writer, False)
os.close(writer)
select.select([], [], [], 1.0)
got = b""
while chunk := os.read(reader, 100):
    got += chunk
assert got[4096:].decode().rstrip().endswith("setup;"), got[-300:]
code = tool.wait(40)
sys.exit(code if sum(os.times()[2:4]) - plain_s < 2 * plain_s + 0.4 else 99)
"""
    )
    arguments = ["stdout", "completion", "bash"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], timeout=60, check=False)
    assert done.returncode == 0
