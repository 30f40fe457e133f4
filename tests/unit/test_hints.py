"""Whoever writes a command wrongly is told how to write it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import reuseport_tool

SOURCES = sorted(Path(reuseport_tool.__file__).parent.rglob("*.py"))


def without_hint(source: str) -> list[str]:
    """The messages of usage errors that have none."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    errors = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "UsageError"]
    return [ast.unparse(call) for call in errors if not any(word.arg == "hint" for word in call.keywords)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(SOURCES[0].parent)))
def test_every_usage_error_has_a_hint(file: Path) -> None:
    assert without_hint(file.read_text()) == []


def test_one_without_a_hint_is_found() -> None:
    assert without_hint("raise UsageError('no')\nraise UsageError('no', hint='so')") == ["UsageError('no')"]
