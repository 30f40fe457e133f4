"""A model, an event or an error on stdout or stderr, as a table or as JSON. JSON needs no rich, and imports none."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from reuseport_tool import models, names
from reuseport_tool.cli.show.streams import NotWritten


def result(model: Any, as_json: bool) -> None:
    """Print a result on stdout."""
    if as_json:
        print(to_json(model))
    else:
        from reuseport_tool.cli.show import console, tables

        tables.show(model, console.make_console(sys.stdout))
    sys.stdout.flush()


def outcome(model: Any, as_json: bool) -> None:
    """As result(), of what has changed the world: that it cannot be written does not change the exit code."""
    try:
        result(model, as_json)
    except NotWritten as failure:
        warn(failure.message)


def event(happened: models.FollowEvent, as_json: bool, stream: TextIO) -> None:
    """Print one event as one line, at once."""
    if as_json:
        print(to_json(happened, indent=None), file=stream)
    else:
        from reuseport_tool.cli.show import console, tables

        tables.show(happened, console.make_console(stream))
    stream.flush()


def to_json(model: Any, indent: int | None = 2) -> str:
    """A model as JSON in ASCII. Bytes that are no text (PEP 383) are written as backslash escapes.

    Of a table of sockets each has one line: Python's encoder takes three times as long where it indents.
    """
    fields = _fields(model)
    tables = [name for name, value in fields.items() if isinstance(value, models.SocketTable)]
    if indent is None or not tables:
        return _encoded(model, indent)
    whole = {
        name: _encoded(value, indent).replace("\n", "\n  ") for name, value in fields.items() if name not in tables
    }
    for name in tables:
        whole[name] = "[" + ",".join(f"\n    {_encoded(row)}" for row in fields[name].rows()) + "\n  ]"
    return "{\n" + ",\n".join(f'  "{name}": {whole[name]}' for name in fields) + "\n}"


def _encoded(value: Any, indent: int | None = None) -> str:
    import json

    written = json.dumps(value, default=_fields, indent=indent)
    if "\\ud" not in written:
        return written
    return json.dumps(names.encodable(json.loads(written)), indent=indent)


def _fields(record: Any) -> Any:
    """One level of a record: asdict() would copy every value of a hundred thousand."""
    if isinstance(record, models.SocketTable):
        return list(record.rows())
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def error(report: models.ErrorReport, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        print(to_json(report), file=sys.stderr)
        return
    from reuseport_tool.cli.show import console

    stderr = console.make_console(sys.stderr)
    if report.log:
        for line in report.log.rstrip().splitlines():
            console.say(stderr, line.expandtabs(), "dim")
    console.say_labelled(stderr, "error: ", "bold red", report.message)
    if report.hint:
        console.say_labelled(stderr, "hint:  ", "bold", report.hint)


def warn(message: str) -> None:
    from reuseport_tool.cli.show import console

    console.say_labelled(console.make_console(sys.stderr), "warning: ", "bold yellow", message)
