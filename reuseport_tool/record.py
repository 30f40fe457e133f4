"""`@record`: the kind of dataclass that this package passes around."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """A frozen dataclass whose fields are given by keyword, so that no two can be swapped by mistake."""
    return dataclass(frozen=True, kw_only=True)(cls)
