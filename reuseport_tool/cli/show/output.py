"""A model, an event or an error on stdout or stderr, as a table or as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import make_console, say


def result(model: Any, as_json: bool) -> None:
    """Print a result on stdout."""
    if as_json:
        print(to_json(model))
    else:
        table(model, make_console(sys.stdout))


def event(happened: models.FollowEvent, as_json: bool) -> None:
    """Print one event as one line on stdout, at once."""
    if as_json:
        print(json.dumps(dataclasses.asdict(happened)), flush=True)
    else:
        table(happened, make_console(sys.stdout))
        sys.stdout.flush()


def to_json(model: Any) -> str:
    return json.dumps(dataclasses.asdict(model), indent=2)


def error(report: models.ErrorReport, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        print(to_json(report), file=sys.stderr)
        return
    console = make_console(sys.stderr)
    if report.log:
        console.print(Text(report.log.rstrip()), style="dim")
    say(console, Text("error: ", style="bold red") + Text(report.message))
    if report.hint:
        say(console, Text("hint:  ", style="bold") + Text(report.hint))


def warn(message: str) -> None:
    say(make_console(sys.stderr), Text("warning: ", style="bold yellow") + Text(message))


@functools.singledispatch
def table(model: Any, console: Console) -> None:
    raise TypeError(f"no table for {type(model).__name__}")


@contextlib.contextmanager
def refreshing(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """A function that shows a model in place of the one before; as JSON, or off a terminal, one after another."""
    console = make_console(sys.stdout)
    if as_json or not console.is_terminal:

        def append(model: Any) -> None:
            result(model, as_json)
            sys.stdout.flush()

        yield append
        return
    with console.screen(hide_cursor=True):

        def replace(model: Any) -> None:
            console.clear()
            table(model, console)

        yield replace
