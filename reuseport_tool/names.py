"""Names that other processes chose: bytes from the kernel as text, and text that cannot steer a terminal."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def text(raw: bytes) -> str:
    """Bytes from the kernel as text: UTF-8 where they are, else a backslash escape for each byte.

    The kernel keeps bytes and cuts them where it must (TASK_COMM_LEN), so half a character is normal.
    """
    return raw.decode("utf-8", "backslashreplace")


def shown(value: str) -> str:
    """Text for a terminal or a log: control characters, line ends and stray surrogates become backslash escapes."""
    if value.isprintable():
        return value
    return "".join(char if char.isprintable() else _escaped(char) for char in value)


def _escaped(char: str) -> str:
    """As Python writes it; a surrogate that stands for a byte (PEP 383) as that byte."""
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def printable(value: T) -> T:
    """A record, however nested, with every text in it as shown() has it."""
    return _mapped(value, shown)  # type: ignore[no-any-return]


def encodable(value: Any) -> Any:
    """Plain data for JSON without stray surrogates, which are no Unicode text; control characters stay."""
    return _mapped(value, _without_surrogates)


def _without_surrogates(value: str) -> str:
    return "".join(_escaped(char) if "\ud800" <= char <= "\udfff" else char for char in value)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        changed = change(value)
        return value if changed == value else changed
    if isinstance(value, tuple | list):
        return type(value)(_mapped(entry, change) for entry in value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(entry, change) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        new = {name: _mapped(entry, change) for name, entry in old.items()}
        changed = {name: entry for name, entry in new.items() if entry is not old[name] and entry != old[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
