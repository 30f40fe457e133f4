"""docs/json.md names every field of every model, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from reuseport_tool import models

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
# Not printed, or described in a sentence.
OTHERS = {"Endpoint", "Status", "AttachReport", "DetachReport", "Maps", "MapChanges", "Slot"}
MODELS = {name: value for name, value in vars(models).items() if dataclasses.is_dataclass(value) and name not in OTHERS}


def documented(name: str) -> set[str]:
    table = re.search(rf"^\| {name} \|.*\n\| --- \| --- \|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table, f"docs/json.md has no table for {name}"
    return {field for row in table[1].splitlines() for field in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize("name", MODELS)
def test_every_field_is_documented(name: str) -> None:
    assert documented(name) == {field.name for field in dataclasses.fields(MODELS[name])}
