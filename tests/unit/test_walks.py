"""Walks over sockets that skip and repeat, merged."""

from __future__ import annotations

from reuseport_tool.kernel.abi import SocketRecord
from reuseport_tool.kernel.socket_iterator import walk_all


def record(cookie: int, state: int = 7) -> SocketRecord:
    return SocketRecord(**dict.fromkeys(SocketRecord._fields, 0) | {"cookie": cookie, "state": state})


def walked(*walks: list[SocketRecord]) -> tuple[list[int], int]:
    left = iter(walks)
    found, number = walk_all(lambda: next(left))
    return [entry.cookie for entry in found], number


def test_until_one_brings_nothing_new() -> None:
    one, two, three = (record(number) for number in (1, 2, 3))
    assert walked([one, one, three], [one, two], [two, three]) == ([1, 3, 2], 3)


def test_a_quiet_table_takes_two() -> None:
    assert walked([record(1)], [record(1)]) == ([1], 2)
    assert walked([], []) == ([], 2)


def test_the_last_look_counts() -> None:
    found, _ = walk_all(iter([[record(1, 1)], [record(1, 8)]]).__next__)
    assert [entry.state for entry in found] == [8]


def test_it_has_an_end() -> None:
    walks = iter(range(1000))
    found, number = walk_all(lambda: [record(next(walks))])
    assert number == len(found) == 10
