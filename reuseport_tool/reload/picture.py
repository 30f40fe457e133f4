"""The report of a reload as a picture (SVG): steps, shares, accept queues, and what clients waited. Pure functions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from reuseport_tool.models import ListenerQueue, Reload
from reuseport_tool.reload import timeline
from reuseport_tool.reload.timeline import Span, Wait

_WIDTH, _LEFT, _RIGHT, _ROW = 960, 130, 120, 26
_PLOT = _WIDTH - _LEFT - _RIGHT
_TOP = 78
_GAP = 42
_SHARE_HEIGHT = 70
_QUEUE_ROW, _QUEUE_HEIGHT = 30, 22
_WAIT_HEIGHT, _WAIT_BAR = 60, 2
_PIDS_MAX = 4
_LINE, _LINE_CHARACTERS = 18, 120
_TICKS = 6
_NICE = (1, 2, 5)
# The colours are classes, so that a dark page gets dark ones.
_STYLE = """<style>
.page{fill:#ffffff}.ink{fill:#1f2733}.faint{fill:#5c6570}.grid{stroke:#e3e6ea}
.done{fill:#3b7dd8}.failed{fill:#c0392b}.old{fill:#a7afb9}.new{fill:#2e9e5b}.newtext{fill:#21794a}.wait{fill:#8e5bc0}
@media (prefers-color-scheme: dark){
.page{fill:#12161c}.ink{fill:#e6e9ed}.faint{fill:#98a2ae}.grid{stroke:#2b323b}
.done{fill:#5b9bee}.failed{fill:#ec6a5c}.old{fill:#66707c}.new{fill:#3fb871}.newtext{fill:#55cf88}.wait{fill:#b48ae0}}
</style>"""


def svg(report: Reload, waits: Sequence[Wait] = ()) -> str:
    """The whole picture, as a text."""
    length_s = timeline.length_s(report)
    spans = timeline.spans(report)
    queues = timeline.named(report.queues)
    share_top = _TOP + len(spans) * _ROW + _GAP
    queue_top = share_top + _SHARE_HEIGHT + _GAP
    wait_top = queue_top + max(len(queues), 1) * _QUEUE_ROW + _GAP
    bottom = wait_top + _WAIT_HEIGHT if waits else wait_top - _GAP
    facts = _facts(report)
    height = bottom + 46 + _LINE * len(facts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        _STYLE,
        f'<rect width="{_WIDTH}" height="{height}" class="page"/>',
        *_head(report),
        *_grid(length_s, bottom),
        *(part for index, span in enumerate(spans) for part in _bar(span, _TOP + index * _ROW, length_s)),
        *_share_area(report, length_s, share_top),
        *_queue_rows(queues, length_s, queue_top),
        *(_wait_bars(report, waits, length_s, wait_top) if waits else ()),
        *(_text(20, bottom + 48 + _LINE * index, line, weight="bold") for index, line in enumerate(facts)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, *, kind: str = "ink", anchor: str = "start", weight: str = "normal") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {attributes}>{escape(text)}</text>"


def _head(report: Reload) -> Iterator[str]:
    title = f"{report.endpoint}: {report.result} in {_duration(report.duration_s)}, strategy {report.strategy}"
    yield _text(20, 28, title, weight="bold")
    yield _text(20, 48, f"old: {_side(report.old.pids)}, new: {_side(report.new.pids)}", kind="faint")


def _side(pids: tuple[int, ...]) -> str:
    more = f" and {len(pids) - _PIDS_MAX} more" if len(pids) > _PIDS_MAX else ""
    return f"process {', '.join(map(str, pids[:_PIDS_MAX]))}{more}" if pids else "no process"


def _x(at_s: float, length_s: float) -> float:
    return _LEFT + _PLOT * min(max(at_s, 0.0) / length_s, 1.0)


def _grid(length_s: float, bottom: int) -> Iterator[str]:
    step_s = _tick(length_s)
    count = int(length_s / step_s + 1e-9)
    for index in range(count + 1):
        x = _x(index * step_s, length_s)
        yield f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" class="grid"/>'
        yield _text(x, bottom + 18, _duration(index * step_s), kind="faint", anchor="middle")


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
    step = span.step
    kind = "failed" if step.outcome == "failed" else "done"
    yield _text(_LEFT - 12, y + 14, step.name, anchor="end")
    yield f'<rect x="{begin:.1f}" y="{y + 3}" width="{width:.1f}" height="15" rx="2" class="{kind}">'
    yield f"<title>{escape(f'{step.name}: {step.outcome} {step.detail}'.rstrip())}</title></rect>"
    failed = " failed" if step.outcome == "failed" else ""
    yield _text(begin + width + 6, y + 15, _duration(step.duration_s) + failed, kind="faint")


def _share_area(report: Reload, length_s: float, top: int) -> Iterator[str]:
    bottom = top + _SHARE_HEIGHT
    changes = timeline.shares(report)
    yield _text(20, top - 12, "share of new connections")
    if len(changes) == 1:
        yield _text(_LEFT, top + 26, "nothing was switched: the kernel chose among all listeners", kind="faint")
        return
    yield _text(_LEFT - 12, top + 12, "100 %", kind="faint", anchor="end")
    yield _text(_LEFT - 12, bottom, "0 %", kind="faint", anchor="end")
    yield f'<rect x="{_LEFT}" y="{top}" width="{_PLOT}" height="{_SHARE_HEIGHT}" class="old" fill-opacity="0.45"/>'
    yield _steps([(at_s, share * _SHARE_HEIGHT) for at_s, share in changes], length_s, bottom, "new")
    yield _text(_LEFT + _PLOT + 10, top + 26, "new", kind="newtext", weight="bold")
    yield _text(_LEFT + _PLOT + 10, top + 44, "old", kind="faint", weight="bold")


def _steps(changes: Sequence[tuple[float, float]], length_s: float, bottom: int, kind: str) -> str:
    """An area whose height is constant from each change to the next."""
    points = [f"{_x(changes[0][0], length_s):.1f},{bottom}"]
    for index, (at_s, height) in enumerate(changes):
        until_s = changes[index + 1][0] if index + 1 < len(changes) else length_s
        y = bottom - height
        points += [f"{_x(at_s, length_s):.1f},{y:.1f}", f"{_x(until_s, length_s):.1f},{y:.1f}"]
    points.append(f"{_LEFT + _PLOT},{bottom}")
    return f'<polygon points="{" ".join(points)}" class="{kind}" fill-opacity="0.75"/>'


def _queue_rows(queues: Sequence[tuple[str, ListenerQueue]], length_s: float, top: int) -> Iterator[str]:
    """All rows have one scale. A queue is drawn as it was seen, until it was seen again."""
    yield _text(20, top - 12, "accept queue of each listener")
    longest = {name: max(look.length for look in queue.looks) for name, queue in queues}
    if not queues:
        yield _text(_LEFT, top + 16, "every queue was empty whenever the reload looked", kind="faint")
        return
    scale = _QUEUE_HEIGHT / max(*longest.values(), 1)
    for index, (name, queue) in enumerate(queues):
        bottom = top + index * _QUEUE_ROW + _QUEUE_HEIGHT
        yield _text(_LEFT - 12, bottom - 4, name, anchor="end")
        yield f'<line x1="{_LEFT}" y1="{bottom}" x2="{_LEFT + _PLOT}" y2="{bottom}" class="grid"/>'
        changes = [(look.at_s, look.length * scale) for look in queue.looks]
        yield _steps(changes, length_s, bottom, "old" if queue.old else "new")
        yield _text(_LEFT + _PLOT + 10, bottom - 4, f"at most {longest[name]}", kind="faint")


def _wait_bars(report: Reload, waits: Sequence[Wait], length_s: float, top: int) -> Iterator[str]:
    """In each column of the picture the longest wait of the clients that connected then."""
    bottom = top + _WAIT_HEIGHT
    columns: dict[int, float] = {}
    for wait in waits:
        column = int((wait.begun_at - report.begun_at) / length_s * (_PLOT // _WAIT_BAR))
        if 0 <= column < _PLOT // _WAIT_BAR:
            columns[column] = max(columns.get(column, 0.0), wait.waited_s)
    longest_s = max(columns.values(), default=0.0)
    yield _text(20, top - 12, "longest wait of the clients that connected at this time")
    yield _text(_LEFT - 12, top + 12, _duration(longest_s), kind="faint", anchor="end")
    yield _text(_LEFT - 12, bottom, "0", kind="faint", anchor="end")
    for column, waited_s in sorted(columns.items()):
        height = _WAIT_HEIGHT * waited_s / (longest_s or 1.0)
        place = f'x="{_LEFT + column * _WAIT_BAR}" y="{bottom - height:.1f}" width="{_WAIT_BAR}" height="{height:.1f}"'
        yield f'<rect {place} class="wait"/>'


def _facts(report: Reload) -> list[str]:
    """What is said below, in lines that fit."""
    if report.result != "reloaded":
        failed = [step for step in report.steps if step.outcome == "failed"]
        text = "; ".join(step.detail or f"{step.name} failed" for step in failed)
    else:
        queued = report.queued_at_stop
        half_open = "unknown" if queued.half_open is None else str(queued.half_open)
        text = (
            f"at the stop {queued.accept_queue} waited in accept queues, {half_open} half-open; "
            f"{report.migrated.total} migrated; {_lost(report)}"
        )
    return textwrap.wrap(text, _LINE_CHARACTERS)


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
