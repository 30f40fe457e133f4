"""Kernel counters whose growth stops a reload."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reuseport_tool.errors import ToolError, UsageError
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.models import Resets

COUNTERS = {
    "overflows": "ListenOverflows",
    "drops": "ListenDrops",
    "resets": "OutRsts",
    "migrate-failures": "TCPMigrateReqFailure",
}
"""By the name on the command line: the kernel's name. They are of the whole network namespace, but for `resets` where
the kernel lets the tool see whose they are."""


@dataclass(frozen=True)
class Threshold:
    """`counter` (a name of COUNTERS) must not grow by `limit` or more."""

    counter: str
    limit: int = 1


def parse(text: str) -> Threshold:
    """Read `NAME` or `NAME=COUNT`. Raises UsageError."""
    name, _, limit = text.partition("=")
    if name not in COUNTERS:
        raise UsageError(f"unknown counter {name!r}", hint=f"there are: {', '.join(COUNTERS)}")
    if not limit and "=" not in text:
        return Threshold(name)
    if not re.fullmatch(r"\d{1,15}", limit, re.ASCII) or int(limit) < 1:
        raise UsageError(f"not a count: {limit!r} in {text!r}", hint=f"for example {name}=10")
    return Threshold(name, int(limit))


def check(thresholds: Sequence[Threshold], before: TcpCounters, now: TcpCounters, resets: Resets | None) -> None:
    """Raises ToolError when a counter has grown too much."""
    for threshold in thresholds:
        growth = _growth(threshold.counter, now.since(before), resets)
        if growth >= threshold.limit:
            raise ToolError(
                f"{threshold.counter} grew by {growth} since the reload began "
                f"(--abort-on {threshold.counter}={threshold.limit})"
            )


def _growth(counter: str, grown: TcpCounters, resets: Resets | None) -> int:
    """The resets are this server's own, where they can be told from those of others."""
    if counter == "resets" and resets is not None:
        return resets.total
    return int(getattr(grown, COUNTERS[counter]))
