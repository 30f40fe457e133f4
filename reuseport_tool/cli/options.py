"""Options that several verbs have, and the forms that options take, each once."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from reuseport_tool.cli.types import DURATION, Number, OneOf

F = TypeVar("F", bound=Callable[..., Any])

wait = click.option(
    "--wait",
    "wait_s",
    type=DURATION,
    default="0s",
    show_default=True,
    help="How long to wait for the lock of another run; a verb always waits for up to 1 s.",
)


def count(name: str, default: int, text: str, *, least: int = 1, most: int = 1000) -> Callable[[F], F]:
    return click.option(name, type=Number("N", least, most), default=default, show_default=True, help=text)


def counts(name: str, parameter: str, default: tuple[int, ...], text: str, *, most: int) -> Callable[[F], F]:
    return click.option(
        name, parameter, type=Number("N", 1, most), multiple=True, default=default, show_default=True, help=text
    )


def duration(name: str, default: str | None, text: str) -> Callable[[F], F]:
    """Its parameter ends in the unit: --stop-timeout is stop_timeout_s. Without a default the text says what holds."""
    parameter = f"{name.removeprefix('--').replace('-', '_')}_s"
    return click.option(name, parameter, type=DURATION, default=default, show_default=default is not None, help=text)


def members(name: str, parameter: str, kind: type[enum.StrEnum], text: str) -> Callable[[F], F]:
    return click.option(name, parameter, type=OneOf(kind), multiple=True, help=text)


def file(name: str, text: str, *, metavar: str | None = None) -> Callable[[F], F]:
    path = click.Path(dir_okay=False, path_type=Path)
    return click.option(name, type=path, metavar=metavar, help=text)
