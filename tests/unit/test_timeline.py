"""The picture and the trace of a report: what they show is what the report says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from reuseport_tool.models import (
    CanaryStep,
    ListenerQueue,
    Lost,
    Migrated,
    QueueLook,
    Queues,
    Reload,
    Resets,
    Side,
    Step,
)
from reuseport_tool.reload import picture, timeline

SVG = "{http://www.w3.org/2000/svg}"


def step(name: str, begin_s: float, duration_s: float, outcome: str = "done", detail: str = "") -> Step:
    return Step(name=name, begin_s=begin_s, duration_s=duration_s, outcome=outcome, detail=detail)


def share(percent: float, duration_s: float) -> CanaryStep:
    return CanaryStep(percent=percent, duration_s=duration_s, to_new=1, to_old=1)


def queue(cookie: int | None, old: bool, *looks: tuple[float, int]) -> ListenerQueue:
    return ListenerQueue(cookie=cookie, old=old, looks=tuple(QueueLook(at_s=at, length=length) for at, length in looks))


WAITS = (timeline.Wait(begun_at=1001.0, waited_s=0.02), timeline.Wait(begun_at=1002.6, waited_s=0.3))
REPORT = Reload(
    endpoint="tcp://127.0.0.1:8080",
    result="reloaded",
    strategy="migrate",
    old=Side(generation=1, pids=(4242,), listeners=(1, 2)),
    new=Side(generation=2, pids=(4711,), listeners=(3, 4)),
    queued_at_stop=Queues(accept_queue=61, half_open=3),
    migrated=Migrated(established=60, syn_recv=0, new_syn_recv=3, total=63),
    lost=Lost(migrate_failures=0, listen_drops=0, listen_overflows=0, aborted_accepted=0),
    steps=(
        step("start", 0.0, 0.5),
        step("canary", 0.5, 2.0),
        step("switch", 2.5, 0.1),
        step("drain", 2.6, 0.0, "skipped"),
        step("stop", 2.6, 0.4),
    ),
    switch_us=4.9,
    begun_at=1000.0,
    duration_s=3.0,
    queues=(
        queue(3, False, (2.6, 61), (2.8, 0)),
        queue(1, True, (0.0, 5), (2.5, 40), (2.6, 0)),
        queue(None, True, (0.5, 21), (2.6, 0)),
    ),
    groups=("tcp://127.0.0.1:8080",),
    resets=Resets(never_accepted=1, handshakes=0, accepted=9, refused=2),
    canary=(share(5, 1.0), share(25, 1.0)),
)
ROLLED_BACK = replace(
    REPORT,
    result="rolled-back",
    switch_us=None,
    canary=(share(5, 1.0),),
    steps=(
        step("start", 0.0, 0.5),
        step("canary", 0.5, 1.5, "failed", 'GET /health: "500" & <more>'),
        step("roll back", 2.0, 0.2),
    ),
)


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(drawn).iter(f"{SVG}text")]


def test_a_step_has_the_place_that_the_report_says() -> None:
    found = [(span.step.name, span.begin_s, span.end_s) for span in timeline.spans(REPORT)]
    assert found == [
        ("start", 0, 0.5),
        ("canary", 0.5, 2.5),
        ("switch", 2.5, pytest.approx(2.6)),
        ("stop", pytest.approx(2.6), pytest.approx(3.0)),
    ]


def test_the_share_follows_canary_and_switch() -> None:
    assert timeline.shares(REPORT) == ((0.0, 0.0), (0.5, 0.05), (1.5, 0.25), (2.6, 1.0))


def test_a_roll_back_gives_everything_back() -> None:
    assert timeline.shares(ROLLED_BACK) == ((0.0, 0.0), (1.0, 0.05), (2.0, 0.0))


def test_without_a_switch_no_share_is_drawn() -> None:
    report = replace(REPORT, switch_us=None, canary=(), strategy="sysctl")
    assert timeline.shares(report) == ((0.0, 0.0),)
    assert not list(ET.fromstring(picture.svg(replace(report, queues=()))).iter(f"{SVG}polygon"))


def test_the_picture_has_a_bar_for_each_step_that_was_done() -> None:
    drawn = picture.svg(REPORT)
    titles = [element.text for element in ET.fromstring(drawn).iter(f"{SVG}title")]
    assert titles == ["start: done", "canary: done", "switch: done", "stop: done"]
    words = texts(drawn)
    assert "tcp://127.0.0.1:8080: reloaded in 3 s, strategy migrate" in words
    assert any("61 waited in accept queues, 3 half-open; 63 migrated" in word for word in words)
    assert any(word.endswith("; 3 lost") for word in words)
    assert any("not measured" in word for word in texts(picture.svg(replace(REPORT, resets=None))))


def test_a_bar_is_as_long_as_its_step() -> None:
    bars = {
        (bar.find(f"{SVG}title").text or "").partition(":")[0]: float(bar.get("width", "0"))  # type: ignore[union-attr]
        for bar in ET.fromstring(picture.svg(REPORT)).iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    }
    assert bars["canary"] == pytest.approx(4 * bars["start"], rel=0.01)


def test_the_reason_of_a_failure_is_text_and_not_markup() -> None:
    assert 'GET /health: "500" & <more>' in texts(picture.svg(ROLLED_BACK))


@pytest.mark.parametrize(
    "report", [REPORT, ROLLED_BACK, replace(REPORT, steps=(), canary=(), duration_s=0.0)], ids=range(3)
)
def test_the_trace_has_the_same_steps(report: Reload) -> None:
    events = json.loads(timeline.trace(report))["traceEvents"]
    steps = [(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"]
    expected = [
        (span.step.name, round(span.begin_s * 1e6), round(span.step.duration_s * 1e6))
        for span in timeline.spans(report)
    ]
    assert steps == expected
    counters = [event for event in events if event["name"] == "share of new connections"]
    assert all(event["args"]["new"] + event["args"]["old"] == 100 for event in counters)
    assert len(counters) == len(timeline.shares(report))
    ET.fromstring(picture.svg(report))


def rows(drawn: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of each area of a kind."""
    areas = [area for area in ET.fromstring(drawn).iter(f"{SVG}polygon") if area.get("class") == kind]
    texts = [area.get("points", "").split() for area in areas]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in text)] for text in texts]


def test_each_queue_has_a_row_on_one_scale() -> None:
    drawn = picture.svg(REPORT)
    assert {"old 1", "old, others", "new 1", "at most 40", "at most 21", "at most 61"} <= set(texts(drawn))
    heights = [max(y for _, y in row) - min(y for _, y in row) for row in rows(drawn, "old")]
    assert heights[0] / heights[1] == pytest.approx(40 / 21, rel=0.02)
    _share, queue_of_new = rows(drawn, "new")
    peak = min(y for _, y in queue_of_new)
    from_s, until_s = (end((x for x, y in queue_of_new if y == peak)) for end in (min, max))
    assert (from_s - 130) / 710 * 3.0 == pytest.approx(2.6, abs=0.01)
    assert (until_s - 130) / 710 * 3.0 == pytest.approx(2.8, abs=0.01)


def test_queues_that_were_never_seen_full_are_said_to_be_empty() -> None:
    assert any("every queue was empty" in word for word in texts(picture.svg(replace(REPORT, queues=()))))


def test_the_waits_of_clients_are_drawn_where_they_are_known() -> None:
    drawn = picture.svg(REPORT, WAITS)
    bars = [bar for bar in ET.fromstring(drawn).iter(f"{SVG}rect") if bar.get("class") == "wait"]
    heights = [float(bar.get("height", "0")) for bar in bars]
    assert heights == [pytest.approx(4.0), pytest.approx(60.0)]
    assert "300 ms" in texts(drawn)
    assert not any("longest wait" in word for word in texts(picture.svg(REPORT)))


def test_every_colour_has_one_for_a_dark_page() -> None:
    style = ET.fromstring(picture.svg(REPORT, WAITS)).findtext(f"{SVG}style") or ""
    light, dark = style.split("@media")
    used = {
        element.get("class") for element in ET.fromstring(picture.svg(REPORT, WAITS)).iter() if element.get("class")
    }
    for kind in used:
        assert f".{kind}{{" in light
        assert f".{kind}{{" in dark


def test_a_long_reason_is_broken_into_lines() -> None:
    failed = replace(ROLLED_BACK, steps=(step("start", 0.0, 1.0, "failed", "because " * 60), *ROLLED_BACK.steps[2:]))
    assert max(map(len, texts(picture.svg(failed)))) <= 120


def test_the_trace_counts_queues_and_waits() -> None:
    events = json.loads(timeline.trace(REPORT, WAITS))["traceEvents"]
    of_old = [event for event in events if event["name"] == "accept queue: old 1 (cookie 1)"]
    assert [(event["ts"], event["args"]["connections"]) for event in of_old] == [
        (0, 5),
        (2_500_000, 40),
        (2_600_000, 0),
    ]
    waits = [(event["ts"], event["args"]["ms"]) for event in events if event["name"] == "a client's wait"]
    assert waits == [(1_000_000, 20), (2_600_000, 300)]


@pytest.mark.parametrize(
    ("length_s", "tick_s"), [(0.0004, 0.0001), (0.9, 0.2), (3.0, 0.5), (60.0, 10.0), (3600.0, 1000.0)]
)
def test_ticks_are_round(length_s: float, tick_s: float) -> None:
    assert picture._tick(length_s) == pytest.approx(tick_s)
