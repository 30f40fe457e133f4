"""`--timeline FILE.svg` and `--trace FILE.json`: files made from the report, whatever became of the reload."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reuseport_tool.cli import show
from reuseport_tool.cli.options import file
from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.kernel import named_files
from reuseport_tool.models import Reload

if TYPE_CHECKING:
    from reuseport_tool.reload.timeline import Wait


TIMELINE = file("--timeline", "Draw the reload as an SVG picture.", metavar="FILE.svg")
TRACE = file("--trace", "Write the reload as a Chrome trace, for ui.perfetto.dev.", metavar="FILE.json")


@contextlib.contextmanager
def drawn(svg: Path | None, trace: Path | None) -> Iterator[Callable[[Reload], None]]:
    """A function that writes the files of a report. They are also written for the report of a reload that failed.

    A file that cannot be written is a warning: it does not change what became of the reload.
    """

    try:
        yield lambda report: draw(report, (), svg, trace)
    except ToolError as error:
        if isinstance(error.report, Reload):
            draw(error.report, (), svg, trace)
        raise


def draw(report: Reload, waits: Sequence[Wait], svg: Path | None, trace: Path | None) -> None:
    """Write the picture and the trace, as far as they are wanted."""
    if svg is None and trace is None:
        return
    from reuseport_tool.reload import picture, timeline  # most reloads draw nothing

    if svg is not None:
        _write(svg, picture.svg(report, waits))
    if trace is not None:
        _write(trace, timeline.trace(report, waits))


def _write(path: Path, text: str) -> None:
    try:
        with open(named_files.open_for_writing(path, 0), "w", encoding="utf-8") as opened:
            if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                opened.truncate()
            opened.write(text)
    except (OSError, Conflict) as error:
        reason = error.message if isinstance(error, Conflict) else error.strerror
        show.warn(f"{path} was not written: {reason}")
