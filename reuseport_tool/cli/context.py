"""What every verb gets: the global options, and how to show a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Context:
    json: bool
    verbose: bool
    bpffs: Path | None


pass_context = click.make_pass_decorator(Context)
