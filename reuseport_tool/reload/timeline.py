"""A report as a picture (SVG) and as a Chrome trace (JSON). Pure functions: report → text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from reuseport_tool.models import Reload, Step
from reuseport_tool.record import record

_WIDTH, _LEFT, _RIGHT, _ROW = 960, 130, 120, 26
_PLOT = _WIDTH - _LEFT - _RIGHT
_TOP = 78
_SHARE_HEIGHT = 70
_TICKS = 6
_COLOURS = {"done": "#3b7dd8", "failed": "#c0392b", "skipped": "#b8bec6"}
_OLD, _NEW, _INK, _FAINT = "#b8bec6", "#2e9e5b", "#1f2733", "#6b7480"
_NICE = (1, 2, 5)


@record
class Span:
    """One step on the time axis of the reload."""

    step: Step
    begin_s: float

    @property
    def end_s(self) -> float:
        return self.begin_s + self.step.duration_s


def spans(report: Reload) -> tuple[Span, ...]:
    """The steps that were done, in their order, each from the end of the one before."""
    found, at_s = [], 0.0
    for step in report.steps:
        if step.outcome != "skipped":
            found.append(Span(step=step, begin_s=at_s))
            at_s += step.duration_s
    return tuple(found)


def shares(report: Reload) -> tuple[tuple[float, float], ...]:
    """From which second on the new side got which share (0 to 1) of the new connections."""
    found = [(0.0, 0.0)]
    for span in spans(report):
        if span.step.name == "canary":
            at_s = span.end_s - sum(share.duration_s for share in report.canary)
            for share in report.canary:
                found.append((max(at_s, span.begin_s), share.percent / 100))
                at_s += share.duration_s
        if span.step.name == "switch" and report.switch_us is not None and span.step.outcome == "done":
            found.append((span.end_s, 1.0))
    if report.result != "reloaded" and len(found) > 1:
        found.append((spans(report)[-1].begin_s, 0.0))  # the roll-back comes last
    return tuple(found)


def trace(report: Reload) -> str:
    """The Chrome trace format, for chrome://tracing and ui.perfetto.dev. Times are in microseconds."""
    events: list[dict[str, object]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": f"reload {report.endpoint}"}},
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "steps"}},
    ]
    for span in spans(report):
        arguments = {"outcome": span.step.outcome, "detail": span.step.detail}
        events.append(
            {"name": span.step.name, "cat": "step", "ph": "X", "pid": 1, "tid": 1, "args": arguments}
            | {"ts": round(span.begin_s * 1e6), "dur": round(span.step.duration_s * 1e6)}
        )
    for at_s, share in shares(report):
        percent = {"new": share * 100, "old": 100 - share * 100}
        events.append(
            {"name": "share of new connections", "ph": "C", "pid": 1, "ts": round(at_s * 1e6), "args": percent}
        )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)


def svg(report: Reload) -> str:
    """The steps as bars, the share of the new side as an area, and what was counted in words."""
    rows = spans(report)
    length_s = max([report.duration_s, *(span.end_s for span in rows)], default=0.0) or 1.0
    share_top = _TOP + len(rows) * _ROW + 42
    height = share_top + _SHARE_HEIGHT + 64
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_head(report),
        *_grid(length_s, share_top + _SHARE_HEIGHT),
        *(part for index, span in enumerate(rows) for part in _bar(span, _TOP + index * _ROW, length_s)),
        *_share_area(report, length_s, share_top),
        *_facts(report, height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, *, fill: str = _INK, anchor: str = "start", weight: str = "normal") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" fill={quoteattr(fill)} text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {attributes}>{escape(text)}</text>"


def _head(report: Reload) -> Iterator[str]:
    title = f"{report.endpoint}: {report.result} in {_duration(report.duration_s)}, strategy {report.strategy}"
    yield _text(20, 28, title, weight="bold")
    yield _text(20, 48, f"old: {_side(report.old.pids)}, new: {_side(report.new.pids)}", fill=_FAINT)


def _side(pids: tuple[int, ...]) -> str:
    return f"process {', '.join(map(str, pids))}" if pids else "no process"


def _x(at_s: float, length_s: float) -> float:
    return _LEFT + _PLOT * min(at_s / length_s, 1.0)


def _grid(length_s: float, bottom: int) -> Iterator[str]:
    step_s = _tick(length_s)
    count = int(length_s / step_s + 1e-9)
    for index in range(count + 1):
        x = _x(index * step_s, length_s)
        yield f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#e3e6ea"/>'
        yield _text(x, bottom + 18, _duration(index * step_s), fill=_FAINT, anchor="middle")


def _tick(length_s: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten of which at most `_TICKS` fit."""
    for exponent in range(-6, 7):
        for factor in _NICE:
            if length_s / (factor * 10.0**exponent) <= _TICKS:
                return factor * 10.0**exponent
    return length_s


def _bar(span: Span, y: int, length_s: float) -> Iterator[str]:
    begin, end = _x(span.begin_s, length_s), _x(span.end_s, length_s)
    width = max(end - begin, 1.5)
    colour = _COLOURS.get(span.step.outcome, _FAINT)
    yield _text(_LEFT - 12, y + 14, span.step.name, anchor="end")
    yield f'<rect x="{begin:.1f}" y="{y + 3}" width="{width:.1f}" height="15" rx="2" fill="{colour}">'
    yield f"<title>{escape(f'{span.step.name}: {span.step.outcome} {span.step.detail}'.rstrip())}</title></rect>"
    failed = " failed" if span.step.outcome == "failed" else ""
    yield _text(begin + width + 6, y + 15, _duration(span.step.duration_s) + failed, fill=_FAINT)


def _share_area(report: Reload, length_s: float, top: int) -> Iterator[str]:
    bottom = top + _SHARE_HEIGHT
    changes = shares(report)
    yield _text(20, top - 12, "share of new connections")
    if len(changes) == 1:
        yield _text(_LEFT, top + 26, "nothing was switched: the kernel chose among all listeners", fill=_FAINT)
        return
    yield _text(_LEFT - 12, top + 12, "100 %", fill=_FAINT, anchor="end")
    yield _text(_LEFT - 12, bottom, "0 %", fill=_FAINT, anchor="end")
    yield f'<rect x="{_LEFT}" y="{top}" width="{_PLOT}" height="{_SHARE_HEIGHT}" fill="{_OLD}" fill-opacity="0.45"/>'
    points = [f"{_LEFT},{bottom}"]
    for index, (at_s, share) in enumerate(changes):
        until_s = changes[index + 1][0] if index + 1 < len(changes) else length_s
        y = bottom - share * _SHARE_HEIGHT
        points += [f"{_x(at_s, length_s):.1f},{y:.1f}", f"{_x(until_s, length_s):.1f},{y:.1f}"]
    points.append(f"{_LEFT + _PLOT},{bottom}")
    yield f'<polygon points="{" ".join(points)}" fill="{_NEW}" fill-opacity="0.75"/>'
    yield _text(_LEFT + _PLOT + 10, top + 26, "new", fill=_NEW, weight="bold")
    yield _text(_LEFT + _PLOT + 10, top + 44, "old", fill=_FAINT, weight="bold")


def _facts(report: Reload, height: int) -> Iterator[str]:
    failed = [step for step in report.steps if step.outcome == "failed"]
    if report.result != "reloaded":
        yield _text(20, height - 16, "; ".join(step.detail or f"{step.name} failed" for step in failed), weight="bold")
        return
    queued = report.queued_at_stop
    half_open = "unknown" if queued.half_open is None else str(queued.half_open)
    text = (
        f"at the stop {queued.accept_queue} waited in accept queues, {half_open} half-open; "
        f"{report.migrated.total} migrated; {_lost(report)}"
    )
    yield _text(20, height - 16, text, weight="bold")


def _lost(report: Reload) -> str:
    """By the resets that the kernel sent, where they were watched."""
    if report.resets is None:
        return "losses were not measured"
    return f"{report.resets.lost} lost"


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "0"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"
