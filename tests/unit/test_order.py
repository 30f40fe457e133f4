"""Slow tests begin first on every second worker, none is lost, and folders are summed up."""

from __future__ import annotations

import pytest

from tests.order import by_folder, slow_first


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("slow", [0, 1, 5])
def test_every_second_worker_begins_with_slow_ones_and_none_is_lost(workers: int, slow: int) -> None:
    first, others = list(range(slow)), list(range(slow, 20))
    ordered = slow_first(first, others, workers)
    assert sorted(ordered) == list(range(20))
    size = -(-20 // workers)
    parts = [ordered[at : at + size] for at in range(0, 20, size)]
    for part in parts:
        kinds = [number in first for number in part]
        assert kinds == sorted(kinds, reverse=True)
    assert all(part[0] in first for part in parts[: 2 * slow : 2])
    assert not any(number in first for part in parts[1::2] for number in part)


def test_one_process_keeps_the_order_within_both_kinds() -> None:
    assert slow_first(["b", "d"], ["a", "c", "e"], 1) == ["b", "d", "a", "c", "e"]


def test_folders_are_summed_up() -> None:
    found = by_folder(
        [("tests/a/test_x.py::one", 1.0), ("tests/b/test_y.py::two[p::q]", 5.0), ("tests/a/z.py::t", 2.0)]
    )
    assert found == [("tests/b", 5.0), ("tests/a", 3.0)]
