"""An error as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ErrorReport:
    """What a failed command prints on stderr with --json."""

    code: int
    message: str
    hint: str | None
    log: str | None = field(default=None)
