"""The picture and the trace of a report: what they show is what the report says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from reuseport_tool.models import CanaryStep, Lost, Migrated, Queues, Reload, Resets, Side, Step
from reuseport_tool.reload import timeline

SVG = "{http://www.w3.org/2000/svg}"


def step(name: str, duration_s: float, outcome: str = "done", detail: str = "") -> Step:
    return Step(name=name, duration_s=duration_s, outcome=outcome, detail=detail)


def share(percent: float, duration_s: float) -> CanaryStep:
    return CanaryStep(percent=percent, duration_s=duration_s, to_new=1, to_old=1)


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
        step("start", 0.5),
        step("canary", 2.0),
        step("switch", 0.1),
        step("drain", 0.0, "skipped"),
        step("stop", 0.4),
    ),
    switch_us=4.9,
    duration_s=3.0,
    groups=("tcp://127.0.0.1:8080",),
    resets=Resets(never_accepted=1, handshakes=0, accepted=9, refused=2),
    canary=(share(5, 1.0), share(25, 1.0)),
)
ROLLED_BACK = replace(
    REPORT,
    result="rolled-back",
    switch_us=None,
    canary=(share(5, 1.0),),
    steps=(step("start", 0.5), step("canary", 1.5, "failed", 'GET /health: "500" & <more>'), step("roll back", 0.2)),
)


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(picture).iter(f"{SVG}text")]


def test_a_step_begins_where_the_one_before_ends() -> None:
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
    assert not list(ET.fromstring(timeline.svg(report)).iter(f"{SVG}polygon"))


def test_the_picture_has_a_bar_for_each_step_that_was_done() -> None:
    picture = timeline.svg(REPORT)
    titles = [element.text for element in ET.fromstring(picture).iter(f"{SVG}title")]
    assert titles == ["start: done", "canary: done", "switch: done", "stop: done"]
    words = texts(picture)
    assert "tcp://127.0.0.1:8080: reloaded in 3 s, strategy migrate" in words
    assert any("61 waited in accept queues, 3 half-open; 63 migrated" in word for word in words)
    assert any(word.endswith("; 3 lost") for word in words)
    assert any("not measured" in word for word in texts(timeline.svg(replace(REPORT, resets=None))))


def test_a_bar_is_as_long_as_its_step() -> None:
    bars = {
        (bar.find(f"{SVG}title").text or "").partition(":")[0]: float(bar.get("width", "0"))  # type: ignore[union-attr]
        for bar in ET.fromstring(timeline.svg(REPORT)).iter(f"{SVG}rect")
        if bar.find(f"{SVG}title") is not None
    }
    assert bars["canary"] == pytest.approx(4 * bars["start"], rel=0.01)


def test_the_reason_of_a_failure_is_text_and_not_markup() -> None:
    assert 'GET /health: "500" & <more>' in texts(timeline.svg(ROLLED_BACK))


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
    counters = [event for event in events if event["ph"] == "C"]
    assert all(event["args"]["new"] + event["args"]["old"] == 100 for event in counters)
    assert len(counters) == len(timeline.shares(report))
    ET.fromstring(timeline.svg(report))


@pytest.mark.parametrize(
    ("length_s", "tick_s"), [(0.0004, 0.0001), (0.9, 0.2), (3.0, 0.5), (60.0, 10.0), (3600.0, 1000.0)]
)
def test_ticks_are_round(length_s: float, tick_s: float) -> None:
    assert timeline._tick(length_s) == pytest.approx(tick_s)
