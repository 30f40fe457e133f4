"""A compiler that ends the process instead of reporting an error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from reuseport_tool.errors import ProgramRejected
from reuseport_tool.kernel import compiler


def crash() -> None:
    os.kill(os.getpid(), signal.SIGABRT)


def speak_and_exit() -> None:
    os.write(2, b"fatal error: error in backend: Invalid usage\n")
    os._exit(1)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (crash, "the compiler ended with -6"),
        (lambda: os._exit(1), "the compiler ended with 1"),
        (lambda: os._exit(0), "the compiler ended with 0"),
        (speak_and_exit, "error in backend"),
    ],
)
def test_a_compiler_that_ends_the_process(end: Callable[[], None], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_bcc", lambda: lambda **_: end())
    with pytest.raises(ProgramRejected, match=says):
        compiler.compile_apart("bad.c", b"", {}, None)


def test_an_ordinary_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        os.write(2, b"/virtual/main.c:1:1: error: expected ';'\n")
        raise Exception("Failed to compile")

    monkeypatch.setattr(compiler, "_bcc", lambda: refuse)
    with pytest.raises(ProgramRejected, match="expected ';'"):
        compiler.compile_apart("bad.c", b"", {}, None)


def test_the_compiler_holds_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it works, a listener that its parent closes is closed."""
    reader, writer = os.pipe()

    def look(**_: object) -> None:
        os.write(2, b"error: held\n" if os.path.exists(f"/proc/self/fd/{writer}") else b"error: closed\n")
        raise Exception("enough")

    monkeypatch.setattr(compiler, "_bcc", lambda: look)
    try:
        with pytest.raises(ProgramRejected, match="error: closed"):
            compiler.compile_apart("policy.c", b"", {}, None)
    finally:
        os.close(reader)
        os.close(writer)
