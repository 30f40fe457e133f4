"""`reload --timeline FILE.svg` and `--trace FILE.json`: files made from the report, whatever became of the reload."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from reuseport_tool.cli import show
from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.kernel import named_files
from reuseport_tool.models import Reload


@contextlib.contextmanager
def drawn(picture: Path | None, trace: Path | None) -> Iterator[Callable[[Reload], None]]:
    """A function that writes the files of a report. They are also written for the report of a reload that failed.

    A file that cannot be written is a warning: it does not change what became of the reload.
    """

    def draw(report: Reload) -> None:
        if picture is None and trace is None:
            return
        from reuseport_tool.reload import timeline  # most reloads draw nothing

        for file, text_of in ((picture, timeline.svg), (trace, timeline.trace)):
            if file is not None:
                _write(file, text_of(report))

    try:
        yield draw
    except ToolError as error:
        if isinstance(error.report, Reload):
            draw(error.report)
        raise


def _write(file: Path, text: str) -> None:
    try:
        with open(named_files.open_for_writing(file, 0), "w", encoding="utf-8") as opened:
            if stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                opened.truncate()
            opened.write(text)
    except (OSError, Conflict) as error:
        reason = error.message if isinstance(error, Conflict) else error.strerror
        show.warn(f"{file} was not written: {reason}")
