"""A record with more than three fields is built by keyword, and a model is never changed."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

import reuseport_tool
from reuseport_tool import models

MODULES = [name for _, name, _ in pkgutil.walk_packages(reuseport_tool.__path__, "reuseport_tool.")]
CLASSES = sorted(
    {
        value
        for name in MODULES
        if not name.endswith("__main__")
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__.startswith("reuseport_tool.")
    },
    key=lambda record: (record.__module__, record.__name__),
)


def test_every_model_is_among_them() -> None:
    assert {
        value for value in (getattr(models, name) for name in models.__all__) if dataclasses.is_dataclass(value)
    } <= set(CLASSES)


@pytest.mark.parametrize("record", CLASSES, ids=lambda record: record.__name__)
def test_records(record: type) -> None:
    fields = dataclasses.fields(record)
    if record.__module__.startswith("reuseport_tool.models") or len(fields) > 3:
        assert all(field.kw_only for field in fields), "a swapped position would be a wrong answer that nobody sees"
    if record.__module__.startswith("reuseport_tool.models"):
        assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
