"""The only home of rich: each result as a table or as JSON, from the same fields. One file a job."""

from __future__ import annotations

# Each of these registers its tables.
from reuseport_tool.cli.show import autolowat, bench, check, doctor, group, reload, sockets
from reuseport_tool.cli.show.output import error, event, refreshing, result, table, to_json, warn
from reuseport_tool.cli.show.progress import ReloadProgress, progress, steps

__all__ = [
    "ReloadProgress",
    "autolowat",
    "bench",
    "check",
    "doctor",
    "error",
    "event",
    "group",
    "progress",
    "refreshing",
    "reload",
    "result",
    "sockets",
    "steps",
    "table",
    "to_json",
    "warn",
]
