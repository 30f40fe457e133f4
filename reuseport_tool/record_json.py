"""Dataclasses as JSON and back, checked against their annotations: how a record outlives its process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_PLAIN = (str, int, float, bool)


def encode(record: Any) -> bytes:
    """A dataclass of plain values, enums, paths, tuples and dataclasses as JSON."""
    return json.dumps(record, default=_plain, separators=(",", ":")).encode()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in _names(type(value))}
    raise TypeError(f"no JSON for {type(value).__name__}")


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def decode(kind: type[_T], text: bytes) -> _T:
    """The record of a type that encode() wrote. Raises ValueError for anything else."""
    try:
        value = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    made = _typed(kind, value, kind.__name__)
    assert isinstance(made, kind)
    return made


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments, value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)  # raises ValueError itself
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in _PLAIN and type(value) is kind:
        return value
    raise ValueError(f"{where}: {value!r} is no {kind}")


def _optional(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    return None if value is None else _typed(kind, value, where)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: {value!r} is no list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where}: {len(value)} values instead of {len(kinds)}")
    return tuple(
        _typed(kind, entry, f"{where}[{index}]") for index, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _record(kind: Any, value: Any, where: str) -> Any:
    fields = _fields(kind)
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise ValueError(f"{where}: not the fields of {kind.__name__}")
    return kind(**{name: _typed(fields[name], entry, f"{where}.{name}") for name, entry in value.items()})


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}
