"""Progress bars, and the steps of a reload while it runs."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show import streams
from reuseport_tool.cli.show.console import make_console, say, say_labelled


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


_WAITS = {
    "prepare": "looking at the old server",
    "start": "waiting until the new server listens in every group",
    "compare": "comparing socket options",
    "register": "registering the new listeners",
    "canary": "giving the new server its shares, one by one",
    "switch": "switching",
    "health": "waiting until the new server accepts and answers",
    "drain": "waiting until the old listeners' queues are empty",
    "confirm": "looking once more before the old server is stopped",
    "stop": "waiting until the old server has closed its listeners",
    "leftovers": "waiting for the old server's connections",
    "prove": "reading the kernel's counters",
    "roll back": "undoing everything",
}


@dataclass(frozen=True)
class _Waiting:
    """What a step waits for, and for how long it has: asked anew for each picture of the spinner."""

    step: str
    since_s: float

    def __rich__(self) -> Text:
        seconds = time.monotonic() - self.since_s
        waits = _WAITS.get(self.step)
        return Text(f"{self.step}: {waits}, {seconds:.0f} s" if waits else f"{self.step}, {seconds:.0f} s")


class ReloadProgress:
    """The steps of a reload on stderr: a spinner on a terminal, a line a step elsewhere, notes only for JSON.

    It writes through a descriptor of its own: while a program is compiled, fd 2 is captured.
    """

    def __init__(self, quiet: bool) -> None:
        self._stream = streams.messages()
        self._console = make_console(self._stream)
        self._quiet = quiet
        self._spinner = self._console.status("", spinner="dots")

    def __enter__(self) -> ReloadProgress:
        if self._console.is_terminal and not self._quiet:
            with contextlib.suppress(OSError, ValueError):
                self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: that is no error of the reload
            self._spinner.stop()
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()

    def begin(self, name: str) -> None:
        self._spinner.update(_Waiting(name, time.monotonic()))

    def end(self, step: models.Step) -> None:
        if self._quiet or step.outcome == "skipped":
            return
        mark = Text("✓ ", style="green") if step.outcome == "done" else Text("✗ ", style="red")
        say(self._console, mark + Text(f"{step.name:<9} {step.duration_s:7.3f} s"))

    def note(self, message: str) -> None:
        self._spinner.stop()  # from here the new server may write to the same terminal
        say(self._console, message)

    def warn(self, message: str) -> None:
        say_labelled(self._console, "warning: ", "bold yellow", message)
