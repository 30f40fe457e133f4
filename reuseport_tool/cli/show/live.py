"""`status --watch` on a terminal: rates, shares, queues and what happened, redrawn in place."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.live import Live
from rich.table import Table
from rich.text import Text

from reuseport_tool import names
from reuseport_tool.cli.show import output
from reuseport_tool.cli.show.console import make_console, make_table, row
from reuseport_tool.group import changes
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.models import Group, Listener, OldSide, Status, Transaction

_EVENTS = 8
_RATES = 24
_SPARKS = "▁▂▃▄▅▆▇█"
_BAR = 20
_PIDS = 3
_QUEUE_BAR = 12
_MIBS = {
    "TCPMigrateReqSuccess": "migrated",
    "TCPMigrateReqFailure": "failed",
    "ListenOverflows": "overflows",
    "ListenDrops": "drops",
}
_BAD = {"TCPMigrateReqFailure", "ListenOverflows", "ListenDrops"}


@dataclass(kw_only=True)
class _Seen:
    """What the view remembers of a group."""

    group: Group
    at_s: float
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_RATES))
    shares: dict[int, float] = field(default_factory=dict)


class LiveView:
    """Draws each status in place of the one before; the last one stays. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console(sys.stdout)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._seen: dict[str, _Seen] = {}
        self._events: deque[tuple[str, str]] = deque(maxlen=_EVENTS)
        self._first_mib: TcpCounters | None = None

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, status: Status, mib: TcpCounters, at_s: float) -> None:
        """Show what was read at a time of the monotonic clock."""
        status = names.printable(status)
        if self._first_mib is None:
            self._first_mib = mib
        self._note(status)
        for group in status.groups:
            self._measure(group, at_s)
        self._seen = {group.endpoint: self._seen[group.endpoint] for group in status.groups}
        self._live.update(Lines(*self._frame(status, mib.since(self._first_mib))), refresh=True)

    def _note(self, status: Status) -> None:
        """Add what happened since the last look to the log; the first look has no events."""
        if not self._seen and not self._events:
            return
        clock = time.strftime("%T")
        present = {group.endpoint: group for group in status.groups}
        for endpoint in {**dict.fromkeys(self._seen), **present}:
            before = self._seen[endpoint].group if endpoint in self._seen else None
            for event in changes.between(before, present.get(endpoint)):
                self._events.append((clock, f"{endpoint}  {event}" if len(present) > 1 else event))

    def _measure(self, group: Group, at_s: float) -> None:
        """Connections per second and shares, from the growth of the program's counters."""
        seen = self._seen.setdefault(group.endpoint, _Seen(group=group, at_s=at_s))
        before, seconds = seen.group, at_s - seen.at_s
        seen.group, seen.at_s = group, at_s
        if group.counters is None or before.counters is None or seconds <= 0:
            return
        growth = group.counters.since(before.counters)
        to_canary = growth.canary + growth.steered
        total = growth.selected + to_canary + growth.fallback
        if total < 0:  # another program, which counts from 0
            return
        seen.rates.append(total / seconds)
        seen.shares = {}
        if total and group.working_generation is not None:
            seen.shares[group.working_generation] = growth.selected / total
        if total and group.canary is not None:
            seen.shares[group.canary.generation] = to_canary / total

    def _frame(self, status: Status, mib: TcpCounters) -> list[RenderableType]:
        lines: list[RenderableType] = []
        if not status.groups:
            lines.append(Text("No SO_REUSEPORT group listens here."))
        for group in status.groups:
            lines += self._group(group, self._seen[group.endpoint])
            lines.append(Text())
        lines.append(_counted(mib))
        lines += [Text(f"{clock}  {event}", style="dim", overflow="ellipsis") for clock, event in self._events]
        lines.append(Text("Ctrl-C ends.", style="dim"))
        return lines

    def _group(self, group: Group, seen: _Seen) -> list[RenderableType]:
        lines: list[RenderableType] = [_title(group)]
        lines += [Text(f"  {problem.kind}: {problem.detail}", style="bold yellow") for problem in group.problems]
        if seen.rates:
            sparks = _sparks(seen.rates)
            lines.append(Text(f"  new connections {seen.rates[-1]:8.1f}/s  ") + Text(sparks, style="cyan"))
        for generation, share in seen.shares.items():
            lines.append(_share(group, generation, share))
        if group.old_side is not None and group.old_side.connections:
            lines.append(_old_side(group.old_side))
        lines.append(_queues(group.listeners))
        return lines


def _title(group: Group) -> Text:
    title = Text(group.endpoint, style="bold")
    if group.program is None:
        title += Text("  no program", style="not bold dim")
    else:
        name = group.program.policy or f"foreign program {group.program.name}"
        title += Text(f"  {name}, working generation {group.working_generation or '-'}", style="not bold")
    if group.reload is not None and group.reload.running:
        title += Text(f"  reload: {group.reload.step}, {_timing(group.reload)}", style="not bold cyan")
    return title


def _timing(reload: Transaction) -> str:
    """How long a canary's share will last, or how long the reload has taken."""
    now = time.time()
    if reload.share_until is None:
        return f"{max(now - reload.begun_at, 0):.0f} s"
    left_s = reload.share_until - now
    return f"next in {left_s:.0f} s" if left_s > 0 else "health check"


def _sparks(rates: deque[float]) -> str:
    top = max(rates) or 1.0
    return "".join(_SPARKS[round(rate / top * (len(_SPARKS) - 1))] for rate in rates)


def _share(group: Group, generation: int, share: float) -> Text:
    is_canary = group.canary is not None and generation == group.canary.generation
    wanted = f" (canary: {group.canary.percent:g} %)" if is_canary and group.canary else ""
    label = Text(f"  generation {generation:<5}")
    return label + _bar(share, _BAR, "cyan" if is_canary else "green") + Text(f" {share:6.1%}{wanted}")


def _old_side(old: OldSide) -> Text:
    """What the old server still holds, and how long ago that was counted where it was not just now."""
    more = f" and {len(old.pids) - _PIDS} more" if len(old.pids) > _PIDS else ""
    age_s = time.time() - old.seen_at
    ago = f", {age_s:.0f} s ago" if age_s >= 2 else ""
    text = (
        f"  old side holds {old.connections} connections (process {', '.join(map(str, old.pids[:_PIDS]))}{more}{ago})"
    )
    return Text(text, style="yellow")


def _bar(share: float, width: int, style: str) -> Text:
    full = min(max(round(share * width), 1 if share > 0 else 0), width)
    return Text("█" * full, style=style) + Text("·" * (width - full), style="dim")


def _queues(listeners: tuple[Listener, ...]) -> Table:
    made = make_table("  pid", "command", "gen", "flag", "queue", "", "half-open", right=("  pid", "gen", "half-open"))
    for entry in listeners:
        queue, backlog = entry.accept_queue, entry.backlog
        share = queue / backlog if queue and backlog else 0.0
        style = {"foreign": "yellow", "old": "dim", "canary": "cyan"}.get(entry.flag, "")
        bar = _bar(share, _QUEUE_BAR, "red" if share > 0.8 else "blue")
        counted = "-" if queue is None else f"{queue}/{backlog}"
        row(made, entry.pid, entry.command, entry.generation, entry.flag, bar, counted, entry.half_open, style=style)
    return made


def _counted(mib: TcpCounters) -> Text:
    """The growth of the namespace's counters since the view began."""
    line = Text("since the start: ")
    for index, (name, words) in enumerate(_MIBS.items()):
        value = getattr(mib, name)
        style = "bold red" if value and name in _BAD else ""
        line += Text(", " if index else "") + Text(f"{value} {words}", style=style)
    return line


@contextlib.contextmanager
def watching(as_json: bool) -> Iterator[Callable[[Status, TcpCounters, float], None]]:
    """A function that shows a status in place of the one before; as JSON, or off a terminal, one after another."""
    if not as_json and sys.stdout.isatty():
        with LiveView() as view:
            yield view.update
        return

    def append(status: Status, _mib: TcpCounters, _at_s: float) -> None:
        output.result(status, as_json)
        sys.stdout.flush()

    yield append
