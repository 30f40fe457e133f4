"""Which function shows a model as a table: those of a job register themselves when its module is imported."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from rich.console import Console

from reuseport_tool import names

# A model is shown by the module of its own module's name, unless it is named here.
_HOMES = {"maps": "group", "follow": "group", "flows": "group"}


def show(model: Any, console: Console) -> None:
    """Put a model on the console, as its table or its text. Those of sockets escape what they show by themselves."""
    home = type(model).__module__.rpartition(".")[2]
    importlib.import_module(f"{__package__}.{_HOMES.get(home, home)}")
    table(model if home == "sockets" else names.printable(model), console)


@functools.singledispatch
def table(model: Any, console: Console) -> None:
    raise TypeError(f"no table for {type(model).__name__}")
