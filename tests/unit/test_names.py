"""Bytes of others as text, on a terminal and in JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool import names
from reuseport_tool.cli.show import output
from reuseport_tool.record import record


@record
class Inner:
    name: str
    number: int = 1


@record
class Outer:
    inner: tuple[Inner, ...]
    command: str | None = None


@given(st.binary(max_size=40))
def test_any_bytes_are_text(raw: bytes) -> None:
    text = names.text(raw)
    text.encode()
    assert names.shown(text).isprintable()
    assert json.loads(output.to_json(Inner(name=text)))["name"] == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nginx", "nginx"),
        ("größe", "größe"),
        ("\x1b[2J\n", "\\x1b[2J\\n"),
        ("a\x9b31m", "a\\x9b31m"),
        ("\u202egnp", "\\u202egnp"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("a\tb\rc\0", "a\\tb\\rc\\x00"),
    ],
)
def test_what_a_terminal_gets(text: str, shown: str) -> None:
    assert names.shown(text) == shown


def test_a_record_is_escaped_to_its_depth() -> None:
    record = Outer(inner=(Inner(name="\x1b"), Inner(name="ok")), command="a\nb")
    assert names.printable(record) == Outer(inner=(Inner(name="\\x1b"), Inner(name="ok")), command="a\\nb")
    clean = Outer(inner=())
    assert names.printable(clean) is clean


def test_json_has_no_stray_surrogate() -> None:
    written = output.to_json(Outer(inner=(Inner(name="b\udcff😀\x1b"),)))
    assert json.loads(written)["inner"][0]["name"] == "b\\xff😀\x1b"
    assert "\\udcff" not in written
