"""docs/json.md and docs/schema.json say of every record what its source says, and what commands print fits them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from docs import generate
from reuseport_tool import models

RECORDS = {
    name: value
    for name, value in ((name, getattr(models, name)) for name in models.__all__)
    if dataclasses.is_dataclass(value)
}
# Printed as text inside other records.
NEVER_PRINTED = {"Endpoint", "Identity"}


@pytest.mark.parametrize("path", generate.files(), ids=lambda path: path.name)
def test_the_files_are_those_of_the_models(path: Path) -> None:
    assert path.read_text() == generate.files()[path], "run `make docs`"


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_is_described_in_a_sentence(name: str) -> None:
    texts = generate.descriptions(RECORDS[name])
    assert list(texts) == [field.name for field in dataclasses.fields(RECORDS[name])]
    assert [text for text in (*texts.values(), generate.summary(RECORDS[name])) if not text.endswith(".")] == []


def test_every_record_is_printed_by_a_command() -> None:
    assert set(generate.printed()) == set(RECORDS) - NEVER_PRINTED


def test_the_schema_tells_right_from_wrong() -> None:
    valid = jsonschema.Draft202012Validator(generate.schema())
    error = models.ErrorReport(code=2, message="no such file", hint=None)
    assert valid.is_valid(json.loads(json.dumps(dataclasses.asdict(error))))
    assert not valid.is_valid({"code": "2", "message": "no such file", "hint": None, "log": None})
    assert not valid.is_valid({"code": 2, "message": "no such file", "hint": None})
