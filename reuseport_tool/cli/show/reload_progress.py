"""The steps of a reload while it runs. Without a terminal there is no spinner, and only text needs rich at all."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reuseport_tool import models
from reuseport_tool.cli.show import streams

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

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
        from rich.text import Text

        seconds = time.monotonic() - self.since_s
        waits = _WAITS.get(self.step)
        return Text(f"{self.step}: {waits}, {seconds:.0f} s" if waits else f"{self.step}, {seconds:.0f} s")


class ReloadProgress:
    """The steps of a reload on stderr: a spinner on a terminal, a line a step elsewhere, notes only for JSON.

    It writes through a descriptor of its own: while a program is compiled, fd 2 is captured.
    """

    def __init__(self, quiet: bool) -> None:
        self._stream = streams.messages()
        self._quiet = quiet
        self._spinner: Status | None = None

    @functools.cached_property
    def _console(self) -> Console:
        from reuseport_tool.cli.show.console import make_console

        return make_console(self._stream)

    def __enter__(self) -> ReloadProgress:
        if not self._quiet and self._console.is_terminal:
            self._spinner = self._console.status("", spinner="dots")
            with contextlib.suppress(OSError, ValueError):
                self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: that is no error of the reload
            self._stop_spinner()
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()

    def begin(self, name: str) -> None:
        if self._spinner is not None:
            self._spinner.update(_Waiting(name, time.monotonic()))

    def end(self, step: models.Step) -> None:
        if self._quiet or step.outcome == "skipped":
            return
        from rich.text import Text

        from reuseport_tool.cli.show.console import say

        mark = Text("✓ ", style="green") if step.outcome == "done" else Text("✗ ", style="red")
        say(self._console, mark + Text(f"{step.name:<9} {step.duration_s:7.3f} s"))

    def note(self, message: str) -> None:
        from reuseport_tool.cli.show.console import say

        self._stop_spinner()  # from here the new server may write to the same terminal
        say(self._console, message)

    def warn(self, message: str) -> None:
        from reuseport_tool.cli.show.console import say_labelled

        say_labelled(self._console, "warning: ", "bold yellow", message)
