"""The frames of `status --watch`: readable in 80 columns, rates by the growth of the counters, the last frame stays."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from reuseport_tool.cli.show.live import LiveView
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.models import Canary, Counters, Group, OldSide, Status, Transaction
from tests.records import some
from tests.unit.test_problems import GROUP, LISTENER, listeners

RUNNING = Transaction(running=True, step="canary", pid=9, begun_at=time.time())


def group(selected: int, to_canary: int = 0, **change: object) -> Group:
    counters = Counters(selected=selected, canary=to_canary)
    return replace(GROUP, counters=counters, **change)  # type: ignore[arg-type]


def frames(width: int, *looks: Status, mib: tuple[TcpCounters, ...] = ()) -> list[str]:
    """What a terminal shows after all looks, a second apart, line by line."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=40, force_terminal=True, color_system=None, legacy_windows=False)
    with LiveView(console) as view:
        for second, status in enumerate(looks):
            stream.truncate(0)
            stream.seek(0)
            view.update(status, mib[second] if mib else some(TcpCounters), float(second))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", stream.getvalue())
    return [line.rstrip() for line in text.split("\n")]


CANARY = Canary(generation=3, percent=25.0)
BUSY = (
    Status(groups=(group(100, listeners=listeners(3, 5)),)),
    Status(
        groups=(
            group(
                175,
                25,
                canary=CANARY,
                reload=RUNNING,
                listeners=(*listeners(3, 500), replace(LISTENER, cookie=9, generation=3, flag="canary")),
            ),
        )
    ),
)


@pytest.mark.parametrize("width", [80, 200])
def test_a_frame_fits(width: int) -> None:
    lines = frames(width, *BUSY)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "new connections    100.0/s" in text
    assert "25.0% (canary: 25 %)" in text
    assert "75.0%" in text
    assert "500/511" in text
    assert "generation 3 gets 25 % of the new connections" in text


@pytest.mark.parametrize(("left_s", "told"), [(12.4, "next in 12 s"), (-1.0, "health check")])
def test_a_canary_counts_down(left_s: float, told: str) -> None:
    running = replace(RUNNING, share_until=time.time() + left_s)
    titles = [line for line in frames(80, Status(groups=(group(1, reload=running),))) if "reload:" in line]
    assert titles
    assert all(title.endswith(f"reload: canary, {told}") for title in titles)


def test_the_first_frame_has_no_rate_and_no_event() -> None:
    text = "\n".join(frames(80, BUSY[0]))
    assert "/s" not in text
    assert "listens" not in text
    assert "tcp://10.0.0.1:80" in text


def test_counters_are_those_since_the_start() -> None:
    looks = (some(TcpCounters, TCPMigrateReqSuccess=7), some(TcpCounters, TCPMigrateReqSuccess=10, ListenDrops=2))
    text = "\n".join(frames(80, *BUSY, mib=looks))
    assert "3 migrated" in text
    assert "2 drops" in text


def test_another_program_counts_from_zero() -> None:
    text = "\n".join(frames(80, BUSY[0], Status(groups=(group(1),))))
    assert "-" not in text.partition("new connections")[2][:12]
    assert "/s" not in text


def test_a_group_that_goes_is_an_event() -> None:
    text = "\n".join(frames(80, BUSY[0], Status(groups=())))
    assert "No SO_REUSEPORT group" in text
    assert "the group is gone" in text


def test_what_the_old_side_still_holds() -> None:
    old = OldSide(connections=12, pids=(5, 6, 7, 8, 9), seen_at=time.time() - 60)
    text = "\n".join(frames(80, Status(groups=(group(1, old_side=old),))))
    assert "old side holds 12 connections (process 5, 6, 7 and 2 more, 60 s ago)" in text
    nothing = replace(old, connections=0, pids=())
    assert "old side" not in "\n".join(frames(80, Status(groups=(group(1, old_side=nothing),))))
