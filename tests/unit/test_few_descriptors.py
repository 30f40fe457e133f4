"""Too few open files: an error with a hint, never a traceback, and never the answer that the kernel lacks something."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from reuseport_tool import errors
from reuseport_tool.kernel import btf, compiler, libbpf, rlimit, rtnetlink

COMMANDS = ["reload 1 --output /dev/null -- true", "status", "metrics", "--json status"]
LIMITS = range(5, 15)  # with 4, Python itself does not start


def run(command: str, limit: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "reuseport_tool", *command.split()]
    return subprocess.run(
        ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_no_traceback(command: str) -> None:
    hints = set()
    for limit in LIMITS:
        done = run(command, limit)
        assert "Traceback" not in done.stdout + done.stderr
        assert "Exception ignored" not in done.stderr
        hints.add("ulimit -n" in done.stderr)
    assert True in hints


def test_doctor_says_that_it_could_not_tell() -> None:
    """Nothing that this kernel has is said to be missing."""
    seen: set[bool | None] = set()
    usual = features(run("--json doctor", 256).stdout)
    for limit in LIMITS:
        done = run("--json doctor", limit)
        if done.stderr:
            assert json.loads(done.stderr)["hint"] == "raise the limit: ulimit -n"
            continue
        found = features(done.stdout)
        assert {name for name, available in found.items() if available is False} <= {
            name for name, available in usual.items() if available is False
        }
        seen.update(found.values())
    assert None in seen


def features(report: str) -> dict[str, bool | None]:
    return {entry["name"]: entry["available"] for entry in json.loads(report)["features"]}


@pytest.fixture
def no_room() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_not_absent(no_room: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_NAME", "libnowhere.so.1")
    monkeypatch.setitem(sys.modules, "bcc", None)
    for ask in (btf._vmlinux.__wrapped__, libbpf.library.__wrapped__, compiler._bcc, lambda: rlimit.require_room(1)):
        with pytest.raises(OSError, match="Too many open files"):
            ask()


def test_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_NAME", "libnowhere.so.1")
    monkeypatch.setitem(sys.modules, "bcc", None)
    for ask in (libbpf.library.__wrapped__, compiler._bcc):
        with pytest.raises(errors.Unsupported):
            ask()


def test_no_event_loop_is_begun(no_room: None) -> None:
    with pytest.raises(OSError, match="Too many open files"), rtnetlink.opened():
        pass
