"""What a failed command prints."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class ErrorReport:
    """The last thing on stderr when a command with `--json` fails."""

    code: int
    """The exit code."""
    message: str
    """What failed."""
    hint: str | None
    """What to do about it, or null."""
    log: str | None = None
    """The text of the compiler or the verifier; only with `--verbose`."""
