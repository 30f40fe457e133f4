"""The event log of `status --watch`: each change of a group in words, and no event without a change."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from reuseport_tool.group import changes
from reuseport_tool.models import Canary, Counters, Group, LastReload, OldSide, Program, Transaction
from tests.unit.test_problems import GROUP, LISTENER, listeners

BEFORE = replace(GROUP, counters=Counters(selected=10, migrated_established=2))
RUNNING = Transaction(running=True, step="start", pid=9, begun_at=1.0)


def holding(connections: int) -> OldSide:
    return OldSide(connections=connections, pids=(7,) if connections else (), seen_at=1.0)


def test_the_old_side_is_told_when_it_is_done() -> None:
    looks = [replace(BEFORE, old_side=holding(count)) for count in (12, 3, 0, 0)]
    events = [changes.between(before, after) for before, after in itertools.pairwise(looks)]
    assert events == [(), ("the old side holds no connections any more",), ()]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"counters": Counters(selected=999, migrated_established=2)}, []),
        ({"program": None, "counters": None}, ["the program is detached"]),
        (
            {"program": Program(id=5, name="x", policy=None)},
            ["the program is x (id 5), not this tool's", "2 connections migrated"],
        ),
        (
            {"listeners": (*BEFORE.listeners, replace(LISTENER, cookie=9))},
            ["listener 9 of nginx (process 4242) listens"],
        ),
        ({"listeners": listeners(3)}, ["listener 1 of nginx (process 4242) closed, 5 waited in its queue before"]),
        (
            {"listeners": listeners(3, 5, flag="old")},
            [f"listener {cookie} of nginx (process 4242) is old, was working" for cookie in (0, 1)],
        ),
        ({"reload": RUNNING}, ["a reload began (process 9)", "the reload is in the step start"]),
        ({"canary": Canary(generation=3, percent=5.0)}, ["generation 3 gets 5 % of the new connections"]),
        ({"working_generation": 3}, ["new connections go to generation 3"]),
        (
            {"counters": Counters(selected=10, migrated_established=5, dropped=1)},
            ["3 connections migrated", "1 connections refused by the policy"],
        ),
        ({"old_side": holding(0)}, []),
        ({"old_side": holding(12)}, ["the old side holds 12 accepted connections"]),
    ],
    ids=range(13),
)
def test_events(change: dict[str, object], expected: list[str]) -> None:
    assert list(changes.between(BEFORE, replace(BEFORE, **change))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (RUNNING, replace(RUNNING, step="switch"), ["the reload is in the step switch"]),
        (RUNNING, None, ["the reload has ended"]),
        (RUNNING, replace(RUNNING, running=False), ["the reload was killed in the step start"]),
        (RUNNING, RUNNING, []),
    ],
    ids=range(4),
)
def test_a_reload(before: Transaction, after: Transaction | None, expected: list[str]) -> None:
    assert list(changes.between(replace(BEFORE, reload=before), replace(BEFORE, reload=after))) == expected


def test_a_canary_that_is_given_up_and_one_that_is_switched_to() -> None:
    canary = replace(BEFORE, canary=Canary(generation=3, percent=5.0))
    assert changes.between(canary, BEFORE) == ("generation 3 gets no connections any more",)
    assert changes.between(canary, replace(BEFORE, working_generation=3)) == ("new connections go to generation 3",)


def test_a_group_comes_and_goes() -> None:
    assert changes.between(None, BEFORE) == ("the group is there",)
    assert changes.between(BEFORE, None) == ("the group is gone",)
    assert changes.between(None, None) == ()


def look(group: Group) -> tuple[str, ...]:
    return changes.between(group, group)


def test_nothing_changes_nothing() -> None:
    assert look(replace(BEFORE, reload=RUNNING, canary=Canary(generation=3, percent=1.0), stale=True)) == ()


@pytest.mark.parametrize(("lost", "told"), [(0, "reloaded, 0 lost"), (None, "reloaded, losses not measured")])
def test_the_outcome_of_a_reload_is_told_at_its_end(lost: int | None, told: str) -> None:
    last = LastReload(result="reloaded", ended_at=2.0, duration_s=1.0, moved=3, lost=lost, failure=None)
    before = replace(GROUP, reload=RUNNING)
    assert list(changes.between(before, replace(GROUP, last_reload=last))) == [f"the reload has ended: {told}"]
