"""The only home of rich: each result as a table or as JSON, from the same fields. One file a job.

Nothing here imports more than the output needs: JSON no table, a table no progress bar.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from reuseport_tool.cli.show.output import error, event, outcome, result, to_json, warn

if TYPE_CHECKING:
    from reuseport_tool.cli.show.progress_bars import progress, steps
    from reuseport_tool.cli.show.reload_progress import ReloadProgress

__all__ = ["ReloadProgress", "error", "event", "outcome", "progress", "result", "steps", "to_json", "warn"]


def __getattr__(name: str) -> object:
    """What shows progress is imported when it is asked for."""
    if name in __all__:
        home = "reload_progress" if name == "ReloadProgress" else "progress_bars"
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
