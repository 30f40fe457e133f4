"""How a console is made, and how text, tables and cells are put on it."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reuseport_tool.names import shown

_WIDE = 240  # columns where the output is not a terminal: data must not be cut


def make_console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def say(console: Console, text: str | Text, style: str = "") -> None:
    """A line of text: wrapped between words on a terminal, left whole for a pipe or a file."""
    if isinstance(text, str):
        text = shown(text)
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def say_labelled(console: Console, label: str, style: str, text: str) -> None:
    """As say(), with a word in front that has a style of its own."""
    say(console, Text(label, style=style) + Text(shown(text)))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def make_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def cell(value: object) -> Text:
    return Text("-" if value is None or value == "" else shown(str(value)))


def row(made: Table, *values: object, style: str = "") -> None:
    made.add_row(*(value if isinstance(value, Text) else cell(value) for value in values), style=style)


def mark(answer: bool | None) -> Text:
    if answer is None:
        return Text("?", style="yellow")
    return Text("✓", style="green") if answer else Text("✗", style="red")
