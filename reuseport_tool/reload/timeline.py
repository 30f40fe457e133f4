"""When what happened in a reload, from its report; and as a Chrome trace (JSON). Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from reuseport_tool.models import ListenerQueue, Reload, Step
from reuseport_tool.record import record


@record
class Span:
    """One step on the time axis of the reload."""

    step: Step

    @property
    def begin_s(self) -> float:
        return self.step.begin_s

    @property
    def end_s(self) -> float:
        return self.step.begin_s + self.step.duration_s


@record
class Wait:
    """How long a client waited for the first byte of its answer."""

    begun_at: float
    """When it connected, in seconds since 1970."""
    waited_s: float


def spans(report: Reload) -> tuple[Span, ...]:
    """The steps that were done, in their order."""
    return tuple(Span(step=step) for step in report.steps if step.outcome != "skipped")


def length_s(report: Reload) -> float:
    """To the end of the last step."""
    return max([report.duration_s, *(span.end_s for span in spans(report))], default=0.0) or 1.0


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


def named(queues: Sequence[ListenerQueue]) -> list[tuple[str, ListenerQueue]]:
    """Each queue with a name: `old 1`, `old 2`, …, the old side first."""
    found = []
    for old, side in ((True, "old"), (False, "new")):
        mine = sorted((queue for queue in queues if queue.old is old), key=lambda queue: queue.cookie is None)
        for number, queue in enumerate(mine, 1):
            found.append((f"{side}, others" if queue.cookie is None else f"{side} {number}", queue))
    return found


def trace(report: Reload, waits: Sequence[Wait] = ()) -> str:
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
    events += _counters(report, waits)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)


def _counters(report: Reload, waits: Sequence[Wait]) -> Iterator[dict[str, object]]:
    for at_s, share in shares(report):
        yield _counter("share of new connections", at_s, {"new": share * 100, "old": 100 - share * 100})
    for name, queue in named(report.queues):
        label = f"accept queue: {name}" if queue.cookie is None else f"accept queue: {name} (cookie {queue.cookie})"
        for look in queue.looks:
            yield _counter(label, look.at_s, {"connections": look.length})
    for wait in sorted(waits, key=lambda wait: wait.begun_at):
        yield _counter("a client's wait", wait.begun_at - report.begun_at, {"ms": wait.waited_s * 1e3})


def _counter(name: str, at_s: float, values: dict[str, float]) -> dict[str, object]:
    return {"name": name, "ph": "C", "pid": 1, "ts": round(at_s * 1e6), "args": values}
