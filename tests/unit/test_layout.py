"""Tables in 80 columns, and in 40: every word of every cell is whole, and no line is too long."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from reuseport_tool.cli.show import tables
from reuseport_tool.cli.show.console import make_table, row
from reuseport_tool.cli.show.layout import put
from tests.unit.test_cli import RESULTS

SENTENCE = "selected, then migrated and counted, in a namespace of its own"


def drawn(table: Table, width: int) -> list[str]:
    stream = io.StringIO()
    put(Console(file=stream, width=width, force_terminal=True, color_system=None), table)
    return stream.getvalue().splitlines()


def example(*columns: str, rows: int = 3) -> Table:
    made = make_table("name", *columns, right=("cookie",))
    for number in range(rows):
        row(
            made, f"tcp://[2001:db8::{number}]:8443", *(SENTENCE if column == "detail" else 10**9 for column in columns)
        )
    return made


@pytest.mark.parametrize("width", [200, 80, 60, 40])
@pytest.mark.parametrize(
    "columns", [("cookie",), ("cookie", "detail"), ("cookie", "slot", "queue", "backlog", "detail")]
)
def test_words_are_whole(columns: tuple[str, ...], width: int) -> None:
    lines = drawn(example(*columns), width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert words.count("tcp://[2001:db8::2]:8443") == 1
    assert words.count("1000000000") == 3 * (len(columns) - ("detail" in columns))
    assert [words.count(word) for word in ("selected,", "migrated", "namespace")] == [3 * ("detail" in columns)] * 3


def test_a_table_that_fits_is_a_table() -> None:
    assert drawn(example("cookie"), 80)[0].split() == ["name", "cookie"]


def test_a_table_that_cannot_fit_names_its_values() -> None:
    first = drawn(example("cookie", "slot", "queue", "backlog"), 40)[0]
    assert first.startswith("name tcp://[2001:db8::0]:8443")


@pytest.mark.parametrize("width", [80, 50])
@pytest.mark.parametrize("model", [model for model, _ in RESULTS], ids=lambda model: type(model).__name__)
def test_results_fit(model: object, width: int) -> None:
    """What 240 columns show, 80 show, word for word."""
    shown = []
    for columns in (240, width):
        stream = io.StringIO()
        tables.show(model, Console(file=stream, width=columns, force_terminal=True, color_system=None, highlight=False))
        shown.append(stream.getvalue())
    assert max(map(len, shown[1].splitlines())) <= width
    assert set(shown[0].split()) - set(shown[1].split()) <= {"-"}
