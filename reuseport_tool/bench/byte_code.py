"""The tool as it is installed: with the byte code of its modules, which takes a verb a tenth of a second to make."""

from __future__ import annotations

import compileall
from pathlib import Path


def make() -> None:
    """Compile our modules, as far as that is not done; where the folder cannot be written, each process does it."""
    compileall.compile_dir(Path(__file__).resolve().parents[1], quiet=2)
