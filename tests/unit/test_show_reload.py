"""The rows of a reload's report: the addition is there line by line, and unknown is not 0."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from reuseport_tool.cli.show import reload as _shows  # noqa: F401
from reuseport_tool.cli.show.tables import table
from reuseport_tool.models import Lost, Migrated, Queues, Reload, Resets, Side
from reuseport_tool.models.proof import Balance

SIDE = Side(generation=1, pids=(7,), listeners=(1,))
REPORT = Reload(
    begun_at=1_700_000_000.0,
    endpoint="tcp://127.0.0.1:8080",
    groups=("tcp://127.0.0.1:8080",),
    result="reloaded",
    strategy="migrate",
    old=SIDE,
    new=SIDE,
    queued_at_stop=Queues(accept_queue=40, half_open=10),
    migrated=Migrated(established=30, syn_recv=0, new_syn_recv=8, total=38),
    lost=Lost(migrate_failures=0, listen_drops=0, listen_overflows=0, aborted_accepted=0),
    balance=Balance.of(waiting=50, moved=38, lost=0, half_open=2),
    resets=Resets(never_accepted=0, handshakes=0, refused=0, accepted=0),
    steps=(),
    switch_us=None,
    duration_s=1.0,
)


def rows(report: Reload) -> list[str]:
    file = io.StringIO()
    table(report, Console(file=file, width=200))
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_every_part_of_the_addition_is_a_row() -> None:
    shown = rows(REPORT)
    at = shown.index("= moved 38 to another listener")
    assert shown[at + 1] == "+ old side 10 answered by the old side, or given up by their clients"
    assert shown[at + 2] == "+ lost 0 reset"
    assert shown[at + 3] == "+ half-open 2 still wait for the final ACK"
    assert "lost no connection" in shown


def test_what_came_later_is_added() -> None:
    later = replace(REPORT, balance=Balance.of(waiting=1, moved=3, lost=0, half_open=0))
    assert "came later 2, before the old listeners closed" in rows(later)


def test_the_servers_own_doing_is_in_the_line_of_the_losses() -> None:
    own = replace(REPORT, resets=Resets(never_accepted=0, handshakes=0, refused=0, accepted=9))
    text = "lost no connection; 9 connections reset after a server had accepted them: the server's own doing"
    assert text in rows(own)


def test_losses_of_each_kind() -> None:
    lost = replace(REPORT, resets=Resets(never_accepted=3, handshakes=2, refused=None, accepted=0))
    text = (
        "lost 5 connections: 3 waited for accept(), 2 for their final ACK, an unknown number of SYNs were refused; "
        "0 migrations failed"
    )
    assert text in rows(lost)


def test_unknown_is_not_0() -> None:
    unknown = replace(REPORT, resets=None, balance=None)
    assert [row for row in rows(unknown) if row.startswith("lost unknown")]
    assert not [row for row in rows(unknown) if row.startswith("lost no")]
