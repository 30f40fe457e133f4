"""Tables on narrow terminals: no word is ever broken.

Columns give up width only down to their longest word. Where even that does not fit, each row is a paragraph of
"name value" pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_PADDING = 2


def put(console: Console, table: Table) -> None:
    """Print a table that console.make_table() or Table.grid() made."""
    texts = [[_text(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widest = [max(map(_width, cells)) for cells in texts]
    longest = [max(map(_longest_word, cells)) for cells in texts]
    room = console.width - _PADDING * (len(texts) - 1)  # none behind the last column
    if sum(widest) > room:
        if sum(longest) > room:
            for line in _paragraphs(table.columns, texts):
                console.print(line)
            return
        for column, width in zip(table.columns, _shared(longest, widest, room), strict=True):
            column.width = width
    console.print(table)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _width(text: Text) -> int:
    return max((line.cell_len for line in text.split("\n")), default=0)


def _longest_word(text: Text) -> int:
    return max((Text(word).cell_len for word in text.plain.split()), default=0)


def _shared(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Widths between the least and the most that fill the room: who needs little gets all of it."""
    widths = list(least)
    spare = room - sum(widths)
    wanting = sorted(range(len(widths)), key=lambda index: most[index] - least[index])
    for place, index in enumerate(wanting):
        given = min(most[index] - least[index], spare // (len(wanting) - place))
        widths[index] += given
        spare -= given
    return widths


def _paragraphs(columns: Sequence[Column], texts: Sequence[Sequence[Text]]) -> Iterator[Text]:
    """A paragraph for each row; what is empty is left out."""
    heads = [" ".join(cells[0].plain.split()) for cells in texts]
    for index, cells in enumerate(zip(*(cells[1:] for cells in texts), strict=True)):
        if index:
            yield Text()
        pairs = [
            Text(f"{head} " if head else "", style="bold") + cell
            for head, cell in zip(heads, cells, strict=True)
            if cell.plain.strip() not in ("", "-")
        ]
        yield Text("  ").join(pairs)
