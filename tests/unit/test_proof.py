"""The adding-up: where the connections went that waited when the old server was told to stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool.models import Resets
from reuseport_tool.models.proof import Balance

COUNTS = st.integers(0, 10_000)


@given(waiting=COUNTS, moved=COUNTS, lost=COUNTS, half_open=COUNTS)
def test_both_sides_are_equal_whatever_was_counted(waiting: int, moved: int, lost: int, half_open: int) -> None:
    balance = Balance.of(waiting=waiting, moved=moved, lost=lost, half_open=half_open)
    gone = balance.moved + balance.old_side + balance.lost + balance.half_open
    assert balance.waiting + balance.later == gone
    assert (balance.waiting, balance.moved, balance.lost, balance.half_open) == (waiting, moved, lost, half_open)
    assert min(balance.later, balance.old_side) == 0


@pytest.mark.parametrize(
    ("counted", "later", "old_side"),
    [
        ({"waiting": 50, "moved": 50, "lost": 0, "half_open": 0}, 0, 0),
        ({"waiting": 50, "moved": 30, "lost": 5, "half_open": 1}, 0, 14),
        ({"waiting": 50, "moved": 53, "lost": 0, "half_open": 0}, 3, 0),
        ({"waiting": 0, "moved": 0, "lost": 0, "half_open": 0}, 0, 0),
    ],
)
def test_what_is_missing_on_one_side(counted: dict[str, int], later: int, old_side: int) -> None:
    balance = Balance.of(**counted)
    assert (balance.later, balance.old_side) == (later, old_side)


def resets(never_accepted: int, handshakes: int, refused: int | None, accepted: int) -> Resets:
    return Resets(never_accepted=never_accepted, handshakes=handshakes, refused=refused, accepted=accepted)


def test_what_a_server_had_accepted_is_not_lost() -> None:
    assert (resets(1, 2, 4, 8).lost, resets(1, 2, 4, 8).total) == (7, 15)
    assert (resets(1, 2, None, 8).lost, resets(1, 2, None, 8).total) == (3, 11)


def test_what_one_port_does_not_know_is_unknown_of_all() -> None:
    assert resets(1, 2, 4, 8).plus(resets(10, 20, 40, 80)) == resets(11, 22, 44, 88)
    assert resets(1, 2, None, 8).plus(resets(10, 20, 40, 80)) == resets(11, 22, None, 88)
