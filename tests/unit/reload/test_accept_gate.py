"""When the new generation counts as accepting."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from reuseport_tool.errors import ToolError
from reuseport_tool.reload.health import AcceptGate


class Moments:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def nobody(_empty: Collection[int]) -> set[int]:
    return set()


def everybody(empty: Collection[int]) -> set[int]:
    return set(empty)


def test_a_queue_that_became_shorter_passes_at_once() -> None:
    gate = AcceptGate({1, 2}, Moments(), nobody)
    assert not gate.passed({1: 3, 2: 1})
    assert not gate.passed({1: 2, 2: 1})
    assert gate.passed({1: 9, 2: 0})


def test_an_empty_queue_passes_soon_where_somebody_waits_for_connections() -> None:
    moments = Moments()
    gate = AcceptGate({1}, moments, everybody)
    assert not gate.passed({1: 0})
    moments.now += 0.02
    assert gate.passed({1: 0})


def test_an_empty_queue_is_watched_where_nobody_waits() -> None:
    moments = Moments()
    gate = AcceptGate({1}, moments, nobody)
    for _ in range(9):
        moments.now += 0.02
        assert not gate.passed({1: 0})
    moments.now += 0.03
    assert gate.passed({1: 0})


@pytest.mark.parametrize("waits", [nobody, everybody])
def test_a_queue_that_is_not_emptied_does_not_pass(waits: object) -> None:
    moments = Moments()
    gate = AcceptGate({1, 2}, moments, waits)  # type: ignore[arg-type]
    for _ in range(50):
        moments.now += 0.1
        assert not gate.passed({1: 1, 2: 0})
    assert gate.waiting() == "1 connections, or bytes of datagrams, wait in 1 queues"


def test_a_listener_that_closes_again_is_an_error() -> None:
    gate = AcceptGate({1, 2}, Moments(), nobody)
    with pytest.raises(ToolError, match="1 of the new listeners closed again"):
        gate.passed({1: 0})
