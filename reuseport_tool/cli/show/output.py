"""A model, an event or an error on stdout or stderr, as a table or as JSON. JSON needs no rich, and imports none."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from reuseport_tool import models


def result(model: Any, as_json: bool) -> None:
    """Print a result on stdout."""
    if as_json:
        print(to_json(model))
        return
    from reuseport_tool.cli.show import console, tables

    tables.show(model, console.make_console(sys.stdout))


def event(happened: models.FollowEvent, as_json: bool) -> None:
    """Print one event as one line on stdout, at once."""
    if as_json:
        print(json.dumps(dataclasses.asdict(happened)), flush=True)
    else:
        result(happened, as_json)
        sys.stdout.flush()


def to_json(model: Any) -> str:
    return json.dumps(dataclasses.asdict(model), indent=2)


def error(report: models.ErrorReport, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        print(to_json(report), file=sys.stderr)
        return
    from reuseport_tool.cli.show import console

    stderr = console.make_console(sys.stderr)
    if report.log:
        stderr.print(report.log.rstrip(), style="dim")
    console.say_labelled(stderr, "error: ", "bold red", report.message)
    if report.hint:
        console.say_labelled(stderr, "hint:  ", "bold", report.hint)


def warn(message: str) -> None:
    from reuseport_tool.cli.show import console

    console.say_labelled(console.make_console(sys.stderr), "warning: ", "bold yellow", message)
