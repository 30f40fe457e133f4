"""The log of accept queues: what was seen, in bounded room."""

from __future__ import annotations

from reuseport_tool.reload.queue_log import QueueLog

OLD = frozenset(range(1, 100))


def seen(log: QueueLog) -> dict[tuple[int | None, bool], list[tuple[float, int]]]:
    return {(series.cookie, series.old): [(look.at_s, look.length) for look in series.looks] for series in log.series()}


def test_a_listener_gets_a_row_when_its_queue_is_not_empty() -> None:
    log = QueueLog()
    log.note(0.0, {1: 0, 2: 0}, OLD)
    log.note(0.02, {1: 0, 2: 7}, OLD)
    log.note(0.04, {1: 0, 2: 7}, OLD)
    log.note(0.06, {1: 0}, OLD)  # 2 is closed, what it held has moved
    log.note(0.06, {1: 0, 101: 7}, OLD)
    assert seen(log) == {
        (2, True): [(0.0, 0), (0.02, 7), (0.06, 0)],
        (101, False): [(0.0, 0), (0.06, 7)],
    }


def test_an_interval_keeps_its_longest_queue() -> None:
    log = QueueLog()
    for length in (3, 9, 1):
        log.note(0.001, {1: length}, OLD)
    log.note(0.01, {1: 1}, OLD)
    assert seen(log) == {(1, True): [(0.0, 9), (0.01, 1)]}


def test_a_long_reload_keeps_its_peaks_in_bounded_room() -> None:
    log = QueueLog()
    for number in range(100_000):
        log.note(number * 0.01, {1: 500 if number == 77_777 else number % 5}, OLD)
    (series,) = log.series()
    assert len(series.looks) <= 100
    peak = max(series.looks, key=lambda look: look.length)
    assert peak.length == 500
    assert abs(peak.at_s - 777.77) < 20


def test_further_listeners_of_a_side_are_added_up() -> None:
    log = QueueLog()
    log.note(0.0, {**dict.fromkeys(range(1, 21), 2), **dict.fromkeys(range(101, 103), 1)}, OLD)
    rows = seen(log)
    assert len(rows) == 8 + 1 + 2
    assert rows[None, True] == [(0.0, 24)]
    assert rows[101, False] == [(0.0, 1)]


def test_a_run_that_goes_on_keeps_what_the_first_one_saw() -> None:
    first = QueueLog()
    first.note(0.0, {1: 4}, OLD)
    second = QueueLog()
    second.go_on(first.series())
    second.note(60.0, {1: 2, 101: 3}, OLD)
    assert seen(second) == {(1, True): [(0.0, 4), (60.0, 2)], (101, False): [(60.0, 3)]}


def test_without_a_queue_there_is_nothing_to_keep() -> None:
    log = QueueLog()
    log.note(0.0, {1: 0, 101: 0}, OLD)
    assert log.series() == ()
