"""Records for tests that look at a few of their fields."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

NGINX: dict[str, Any] = {"pid": 4242, "command": "nginx"}
"""The process that holds a socket."""


def some(kind: type[_T], /, **given: Any) -> _T:
    """A record with these fields. The others have their defaults, or else null, nothing, 0, or the first of an enum."""
    hints = typing.get_type_hints(kind)
    missing = [field.name for field in dataclasses.fields(kind) if _is_required(field)]  # type: ignore[arg-type]
    return kind(**{name: _plainest(hints[name]) for name in missing if name not in given}, **given)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is field.default_factory is dataclasses.MISSING


def _plainest(hint: Any) -> object:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return None
    if origin is typing.Literal:
        return typing.get_args(hint)[0]
    if dataclasses.is_dataclass(hint):
        return some(typing.cast(type, hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next(iter(hint))
    return () if origin is Sequence else (origin or hint)()
