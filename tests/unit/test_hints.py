"""Whoever writes a command wrongly, or asks for what is not there, is told what to type next."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

import reuseport_tool
from reuseport_tool.cli import main
from reuseport_tool.errors import ToolError

PACKAGE = Path(reuseport_tool.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
HINTED = {"UsageError", "NotFound", "Conflict", "Unsupported", "MissingCapability"}
# What is raised there is the answer of a probe or of a case, and shown in a table: nobody types anything next.
ANSWERS = ("probes/", "check/")


def without_hint(source: str, kinds: set[str]) -> list[str]:
    """The errors of these kinds that have none."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds]
    return [ast.unparse(call) for call in errors if not any(word.arg == "hint" for word in call.keywords)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_error_of_these_kinds_has_a_hint(file: Path) -> None:
    is_answer = str(file.relative_to(PACKAGE)).startswith(ANSWERS)
    assert without_hint(file.read_text(), {"UsageError"} if is_answer else HINTED) == []


def test_one_without_a_hint_is_found() -> None:
    source = "raise UsageError('no')\nraise UsageError('no', hint='so')\nraise NotFound('no')"
    assert without_hint(source, HINTED) == ["UsageError('no')", "NotFound('no')"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_what_there_is_no_room_for(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, or as the cause of an error of ours that has no hint."""
    failure = OSError(number, os.strerror(number), "a file")
    assert main._answer(failure, None) == 1
    own = ToolError("making a map failed")
    own.__cause__ = failure
    assert main._answer(own, None) == 1
    assert capsys.readouterr().err.count("hint:") == 2
