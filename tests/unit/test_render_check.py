"""The table of `check hot-reload`."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from reuseport_tool.cli.show import tables
from reuseport_tool.models import Case, CheckedWay, CheckHotReload, ConnectionState, Move, Redistribution
from tests.records import some

LOST = some(
    Case,
    state="established",
    family="ipv6",
    strategy="bpf-migrate",
    connections=4,
    survived=3,
    expected="survive",
    woken=False,
    duration_s=0.1,
    detail="3 of 4 survived, all should",
)


def report(*wrong: Case) -> CheckHotReload:
    """48 cases that are ok, but those that are given."""
    replaced = {(case.strategy, case.family, case.state): case for case in wrong}
    cases = tuple(
        replaced.get(
            (way, family, state),
            some(
                Case,
                state=state,
                family=family,
                strategy=way,
                connections=64,
                survived=64,
                expected="survive",
                woken=True,
                duration_s=7.25,
                ok=True,
            ),
        )
        for way in CheckedWay
        for family in ("ipv4", "ipv6")
        for state in ConnectionState
    )
    moves = tuple(
        Move(
            strategy="sysctl",
            queued_on=name,
            via=("B",) if name == "A" else (),
            answered_by="C" if name != "D" else "D",
        )
        for name in "ABCD"
    )
    return CheckHotReload(
        kernel="6.18.0",
        ok=not wrong,
        cases=cases,
        redistribution=Redistribution(moves=moves, ok=True),
        duration_s=9.6,
        notes=("a note",),
    )


def shown(model: CheckHotReload, width: int) -> list[str]:
    stream = io.StringIO()
    tables.show(model, Console(file=stream, width=width, markup=False, highlight=False, emoji=False))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 200])
def test_the_matrix_fits(width: int) -> None:
    lines = shown(report(), width)
    assert max(len(line) for line in lines) <= width
    row = next(line for line in lines if line.startswith("bpf-migrate   ipv6"))
    assert row.split() == ["bpf-migrate", "ipv6", *["64/64", "woken"] * 4, "7.25", "s"]
    assert "sysctl  A → B → C  B → C  C  D" in lines
    assert lines[-1] == "ok, 48 cases on Linux 6.18.0 in 9.6 s"


def test_a_failed_case_says_what_is_wrong() -> None:
    lines = shown(report(LOST), 80)
    assert "bpf-migrate ipv6 established: 3 of 4 survived, all should" in lines
    assert any("!3/4 asleep" in line for line in lines)
    assert lines[-1].startswith("failed: 1 not as expected")


def test_a_failed_redistribution_without_moves_is_shown() -> None:
    model = replace(
        report(), ok=False, redistribution=Redistribution(moves=(), ok=False, detail="sysctl: could not run: no luck")
    )
    lines = shown(model, 80)
    assert "redistribution: sysctl: could not run: no luck" in lines
    assert lines[-1].startswith("failed: 1 not as expected")
