"""Writes docs/json.md and docs/schema.json from the models. `make docs` runs it; a unit test holds the files to it.

The description of a field is the string literal below it in the source (an attribute docstring).
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from reuseport_tool import models

DOCS = Path(__file__).parent

# The sections of the page: what the commands print. The records inside follow by themselves.
COMMANDS: dict[str, tuple[type, ...]] = {
    "Every command, when it fails": (models.ErrorReport,),
    "doctor": (models.Doctor,),
    "compile": (models.Filled,),
    "status": (models.Status,),
    "attach": (models.AttachReport,),
    "attach --follow": (models.FollowEvent,),
    "detach": (models.DetachReport,),
    "map list, map show": (models.Maps,),
    "map add, map remove, map switch": (models.MapChanges,),
    "flows": (models.Flows,),
    "migrate-req": (models.MigrateReq,),
    "reload": (models.Reload,),
    "reload --dry-run": (models.DryRun,),
    "sockets": (models.Sockets,),
    "destroy": (models.Destroy,),
    "check hot-reload": (models.CheckHotReload,),
    "bench select": (models.BenchSelect,),
    "bench reload": (models.BenchReload,),
    "bench sockets": (models.BenchSockets,),
    "bench speed": (models.BenchSpeed,),
    "bench udp": (models.BenchUdp,),
    "autolowat attach, autolowat detach, autolowat status": (
        models.AutolowatAttachment,
        models.AutolowatDetached,
        models.AutolowatStatus,
    ),
    "check udp-reload": (models.CheckUdpReload,),
    "check rpc-framing": (models.CheckRpcFraming,),
    "bench rpc-framing": (models.BenchRpcFraming,),
}

INTRODUCTION = """\
<!-- Made from reuseport_tool/models/ by `make docs`. Edit the models instead. -->
# The JSON contract

With `--json` a command prints one object on stdout. `attach --follow` and `status --watch` print one object after
another. A command that fails prints an object on stderr, after everything else. `metrics` and `completion` have formats
of their own: with `--json`, only their errors are JSON.

[schema.json](schema.json) is the same contract as a JSON Schema: each record is in its `$defs`. Fields are added and
never renamed. A name ends in its unit: `_s` seconds, `_us` microseconds, `_ns` nanoseconds. Queues, counters and losses
count connections unless their description says otherwise.
"""

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def descriptions(record: type) -> dict[str, str]:
    """The attribute docstrings of a record and of what it inherits from, each on one line."""
    inherited = [descriptions(base) for base in record.__bases__ if dataclasses.is_dataclass(base)]
    found = {name: text for texts in inherited for name, text in texts.items()}
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]).body
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[typing.cast(ast.Name, field.target).id] = " ".join(str(text.value.value).split())
    return found


def summary(record: type) -> str:
    return " ".join((record.__doc__ or "").split("\n\n")[0].split())


def contained(record: type) -> Iterator[type]:
    """The record and those that its fields hold, in the order of the fields."""
    yield record
    for hint in typing.get_type_hints(record).values():
        for inner in _records_of(hint):
            yield from contained(inner)


def _records_of(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for argument in typing.get_args(hint):
        yield from _records_of(argument)


def printed() -> dict[str, type]:
    """Every record that a command prints, by name."""
    return {record.__name__: record for roots in COMMANDS.values() for root in roots for record in contained(root)}


def schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What reuseport-tool prints with --json",
        "anyOf": [{"$ref": f"#/$defs/{root.__name__}"} for roots in COMMANDS.values() for root in roots],
        "$defs": {name: _record_schema(record) for name, record in sorted(printed().items())},
    }


def _record_schema(record: type) -> dict[str, Any]:
    hints, texts = typing.get_type_hints(record), descriptions(record)
    properties = {name: {"description": texts[name], **_type_schema(hint)} for name, hint in hints.items()}
    return {
        "description": summary(record),
        "type": "object",
        "properties": properties,
        "required": list(hints),
    }


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type_schema(argument) for argument in arguments]}
    if origin is Sequence or (origin is tuple and arguments[1:] == (...,)):
        return {"type": "array", "items": _type_schema(arguments[0])}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if hint is type(None):
        return {"type": "null"}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{typing.cast(type, hint).__name__}"}
    if issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return {"type": _SCALARS[hint]}


def page() -> str:
    """docs/json.md. A record is described once, where it is printed first."""
    parts, seen = [INTRODUCTION], set[type]()
    for title, roots in COMMANDS.items():
        parts.append(f"## {title}\n")
        for record in (record for root in roots for record in contained(root)):
            if record not in seen:
                seen.add(record)
                parts.append(_table(record))
    return "\n".join(parts)


def _table(record: type) -> str:
    texts = descriptions(record)
    rows = [f"| `{name}` | {_words(hint)} | {texts[name]} |" for name, hint in typing.get_type_hints(record).items()]
    head = ["| Field | Type | Meaning |", "| --- | --- | --- |"]
    return "\n".join([f"### {record.__name__}\n", f"{summary(record)}\n", *head, *rows, ""])


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin in (tuple, Sequence):
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"object of {_words(arguments[1])} by name"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    if issubclass(hint, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    return _SCALARS[hint]


def files() -> dict[Path, str]:
    """What the generated files have to hold."""
    return {
        DOCS / "json.md": page(),
        DOCS / "schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
