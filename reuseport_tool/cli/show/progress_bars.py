"""Progress bars."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from reuseport_tool.cli.show import streams
from reuseport_tool.cli.show.console import make_console


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many of how many are done, on stderr, if that is a terminal.

    It writes through a descriptor of its own: while a program is compiled, fd 2 is captured.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with streams.messages() as stream:
        shown = Progress(
            *columns, console=make_console(stream), transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with shown:
            task = shown.add_task(label, total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A function that shows one more of `total` as done, as progress() does."""
    with progress(label) as shown:
        done = itertools.count(1)
        yield lambda: shown(next(done), total)
