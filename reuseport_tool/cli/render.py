"""The only home of rich: every model as a table or as JSON, from the same fields."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from reuseport_tool import models

_WIDE = 240  # columns where the output is not a terminal: data must not be cut


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def _say(console: Console, text: str | Text, style: str = "") -> None:
    """A line of text: wrapped between words on a terminal, left whole for a pipe or a file."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def show(model: Any, as_json: bool) -> None:
    """Print a result on stdout."""
    if as_json:
        print(to_json(model))
    else:
        table(model, _console(sys.stdout))


def line(event: models.FollowEvent, as_json: bool) -> None:
    """Print one event as one line on stdout, at once."""
    if as_json:
        print(json.dumps(dataclasses.asdict(event)), flush=True)
    else:
        table(event, _console(sys.stdout))
        sys.stdout.flush()


def to_json(model: Any) -> str:
    return json.dumps(dataclasses.asdict(model), indent=2)


def show_error(report: models.ErrorReport, as_json: bool) -> None:
    """Print an error on stderr."""
    if as_json:
        print(to_json(report), file=sys.stderr)
        return
    console = _console(sys.stderr)
    if report.log:
        console.print(Text(report.log.rstrip()), style="dim")
    _say(console, Text("error: ", style="bold red") + Text(report.message))
    if report.hint:
        _say(console, Text("hint:  ", style="bold") + Text(report.hint))


def warn(message: str) -> None:
    _say(_console(sys.stderr), Text("warning: ", style="bold yellow") + Text(message))


@functools.singledispatch
def table(model: Any, console: Console) -> None:
    raise TypeError(f"no table for {type(model).__name__}")


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def _cell(value: object) -> Text:
    return Text("-" if value is None or value == "" else str(value))


def _row(made: Table, *values: object, style: str = "") -> None:
    made.add_row(*(value if isinstance(value, Text) else _cell(value) for value in values), style=style)


@table.register
def _status(model: models.Status, console: Console) -> None:
    if not model.groups:
        console.print("No SO_REUSEPORT group listens here.")
    for index, group in enumerate(model.groups):
        if index:
            console.print()
        _group(group, console)


def _group(group: models.Group, console: Console) -> None:
    _say(console, Text(group.endpoint, style="bold") + Text(f"  {group.netns}") + _program(group))
    if group.stale:
        _say(
            console,
            Text("  stale: pins are left, but the program does not run; 'attach' or 'detach' mends it", style="yellow"),
        )
    if group.reload:
        _say(console, _transaction(group.endpoint, group.reload))
    numbers = ("cookie", "pid", "uid", "gen", "slot", "queue", "backlog", "half-open")
    made = _table(
        "cookie", "pid", "command", "uid", "gen", "slot", "queue", "backlog", "half-open", "flag", right=numbers
    )
    for entry in group.listeners:
        _row(
            made,
            entry.cookie,
            entry.pid,
            entry.command,
            entry.uid,
            entry.generation,
            entry.slot,
            entry.accept_queue,
            entry.backlog,
            entry.half_open,
            entry.flag,
            style={"foreign": "yellow", "old": "dim", "canary": "cyan"}.get(entry.flag, ""),
        )
    if group.listeners:
        console.print(made)
    if group.counters:
        _say(console, Text(_counters(group.counters), style="dim"))


def _transaction(endpoint: str, reload: models.Transaction) -> Text:
    began = time.strftime("%F %T", time.localtime(reload.begun_at))
    if reload.running:
        return Text(f"  a reload is in the step {reload.step!r} (process {reload.pid}, begun {began})", style="cyan")
    return Text(
        f"  a reload was killed in the step {reload.step!r} (begun {began}): "
        f"'reload {endpoint} --resume' finishes it, '--abort' undoes it",
        style="bold yellow",
    )


def _program(group: models.Group) -> Text:
    if group.program is None:
        return Text("  no program", style="dim")
    if group.program.policy is None:
        return Text(f"  foreign program {group.program.name} (id {group.program.id})", style="yellow")
    return Text(
        f"  {group.program.policy} (id {group.program.id}), working generation {group.working_generation or '-'}"
        + (f", generation {group.canary.generation} gets {group.canary.percent:g} %" if group.canary else "")
    )


def _counters(counters: models.Counters) -> str:
    return (
        f"selected {counters.selected}, fallback {counters.fallback}, dropped {counters.dropped}; migrated: "
        f"established {counters.migrated_established}, syn_recv {counters.migrated_syn_recv}, "
        f"new_syn_recv {counters.migrated_new_syn_recv}"
        + (f"; canary {counters.canary}, steered {counters.steered}" if counters.canary or counters.steered else "")
    )


@table.register
def _attached(model: models.AttachReport, console: Console) -> None:
    for entry in model.attached:
        done = {
            "attached": f"attached {entry.program.policy}",
            "replaced": f"replaced the program by {entry.program.policy}",
            "unchanged": f"already attached: {entry.program.policy}",
        }[entry.result]
        registered = f"{_counted(len(entry.registered), 'listener')} registered, working generation {entry.generation}"
        _say(console, f"{entry.endpoint}  {done} (id {entry.program.id}), {registered}")


@table.register
def _follow_event(model: models.FollowEvent, console: Console) -> None:
    who = f" of {model.command} (process {model.pid})" if model.pid else ""
    delay = "" if model.delay_s is None else f", {model.delay_s * 1000:.1f} ms after it began to listen"
    text = {
        "following": "following; SIGTERM or Ctrl-C ends it and changes nothing",
        "attached": f"{model.detail}, working generation {model.generation}",
        "registered": f"listener {model.cookie}{who} registered in slot {model.slot} "
        f"of generation {model.generation}{delay}",
        "left-alone": f"listener {model.cookie}{who} left alone: {model.detail}",
        "locked": f"waiting: {model.detail}",
        "events-lost": "events were lost; looked at everything anew",
        "detached": f"detached by somebody: {model.detail}",
        "failed": f"failed: {model.detail}",
        "stopped": "stopped; program and registrations stay",
    }[model.event]
    _say(console, f"{model.endpoint}  {text}")


@table.register
def _detached(model: models.DetachReport, console: Console) -> None:
    for entry in model.detached:
        text = "program and pins removed" if entry.result == "detached" else "pins removed; no program was running"
        _say(console, f"{entry.endpoint}  {text}")


@table.register
def _maps(model: models.Maps, console: Console) -> None:
    if not model.maps:
        console.print("No maps of this tool in this network namespace.")
        return
    made = _table(
        "endpoint",
        "generation",
        "",
        "members",
        "capacity",
        "slot → cookie",
        right=("generation", "members", "capacity"),
    )
    for entry in model.maps:
        slots = "  ".join(f"{slot.slot} → {slot.cookie}" for slot in entry.slots)
        _row(
            made,
            entry.endpoint,
            entry.generation,
            "working" if entry.working else " ",
            entry.members,
            entry.capacity,
            slots,
        )
    console.print(made)


@table.register
def _map_changes(model: models.MapChanges, console: Console) -> None:
    for entry in model.changes:
        text = {
            "added": f"slot {entry.slot} of generation {entry.generation} has the listener with cookie {entry.cookie}",
            "removed": f"slot {entry.slot} of generation {entry.generation} is empty, it had cookie {entry.cookie}",
            "switched": f"generation {entry.generation} is the working one",
        }[entry.change]
        _say(console, f"{entry.endpoint}  {text}")


@table.register
def _migrate_req(model: models.MigrateReq, console: Console) -> None:
    state = "on" if model.enabled else "off"
    console.print(f"{model.netns}  net.ipv4.tcp_migrate_req is {state}{' now' if model.changed else ''}")


def _mark(answer: bool | None) -> Text:
    if answer is None:
        return Text("?", style="yellow")
    return Text("✓", style="green") if answer else Text("✗", style="red")


@table.register
def _doctor(model: models.Doctor, console: Console) -> None:
    made = _table("", "feature", "since", "detail")
    for feature in model.features:
        _row(made, _mark(feature.available), feature.name, feature.minimum_kernel, feature.detail)
    console.print(made)
    console.print()
    made = _table("", "capability", "used for")
    for capability in model.capabilities:
        _row(made, _mark(capability.held), capability.name, capability.used_for)
    console.print(made)
    console.print()
    _say(console, _doctor_verdict(model))


def _doctor_verdict(model: models.Doctor) -> Text:
    subject = f"Linux {model.kernel}: reload with the strategy migrate"
    if model.ok:
        return Text(f"{subject} works here", style="bold green")
    absent = [feature.name for feature in model.features if feature.available is False]
    wanting = [name for name in model.missing if name in absent]
    if wanting:
        return Text(f"{subject} does not work here, for want of: {', '.join(wanting)}", style="bold red")
    return Text(f"{subject} could not be tried: {', '.join(model.missing)}", style="bold yellow")


@table.register
def _bench_select(model: models.BenchSelect, console: Console) -> None:
    numbers = ("listeners", "conn/s", "wall clock", "CPU time", "ns/run", "ratio")
    made = _table("listeners", "program", "conn/s", "wall clock", "CPU time", "ns/run", "ratio", right=numbers)
    for arm in model.arms:
        is_base = arm.program == "none"
        _row(
            made,
            arm.listeners,
            arm.program,
            f"{arm.connections_per_s:.0f}",
            None if is_base else _ratio(arm.relative),
            None if is_base else _ratio(arm.cpu_relative),
            arm.ns_per_run,
            None if arm.ns_relative is None else f"{arm.ns_relative:.2f}",
        )
    console.print(made)
    console.print(
        f"Linux {model.kernel}, {model.rounds} rounds of {model.connections_per_round} connections, "
        f"{model.duration_s:.0f} s. Connections per second relative to no program: "
        "median ± half the interquartile range. ratio: ns/run relative to bench_select.",
        style="dim",
    )


@table.register
def _bench_sockets(model: models.BenchSockets, console: Console) -> None:
    made = _table("protocol", "sockets", "arm", "ms", "to ss", right=("sockets", "ms", "to ss"))
    for size in model.sizes:
        for arm in size.arms:
            relative = None if arm.name == "ss" else _ratio(arm.relative)
            _row(made, size.protocol, size.sockets, arm.name, f"{arm.milliseconds:.1f}", relative)
    console.print(made)
    note = (
        f"Linux {model.kernel}, {model.ss}, {model.rounds} rounds, {model.duration_s:.0f} s. Wall time relative to ss: "
        "median ± half the interquartile range. walk: into records of a running process; list: with filters, "
        "text and processes; sockets: our whole command; ss -p: with processes."
    )
    _say(console, Text(note, style="dim"))


@table.register
def _bench_reload(model: models.BenchReload, console: Console) -> None:
    numbers = (
        "lost",
        "longest wait",
        "duration",
        "connections",
        "refused",
        "reset",
        "unanswered",
        "timed out",
        "moved",
    )
    made = _table("", *numbers, right=numbers)
    for arm in model.arms:
        if arm.lost is None or arm.longest_wait_ms is None or arm.duration_s is None:
            _row(made, arm.name, arm.detail)
            continue
        spreads = (_spread(arm.lost, ""), _spread(arm.longest_wait_ms, " ms"), _spread(arm.duration_s, " s", 2))
        losses = (arm.refused, arm.reset, arm.unanswered, arm.timed_out)
        _row(made, arm.name, *spreads, arm.connections, *losses, arm.migrated, style="red" if sum(losses) else "green")
    console.print(made)
    note = (
        f"Linux {model.kernel}, {model.rounds} rounds, {model.clients} clients at a time. Of one reload, median ± half "
        "the interquartile range: connections lost, longest time from connect to the first byte, duration. The rest "
        "is of all rounds."
    )
    _say(console, Text(note, style="dim"))
    console.print()
    _closes(model, console)


def _closes(model: models.BenchReload, console: Console) -> None:
    numbers = ("queued", "program", "each", "sysctl", "each ", "program/sysctl", "by CPU time", "any program/sysctl")
    made = _table(*numbers, right=numbers)
    for size in model.closes:
        _row(
            made,
            size.queued,
            _spread(size.program_us, " µs"),
            f"{size.program_us_per_connection:.2f} µs",
            _spread(size.sysctl_us, " µs"),
            f"{size.sysctl_us_per_connection:.2f} µs",
            *map(_ratio, (size.relative, size.cpu_relative, size.minimal_relative)),
        )
    console.print(made)
    note = (
        f"close(2) of the last old listener, in which the queued connections move: {model.close_rounds} rounds, "
        "median ± half the interquartile range. any program: the smallest one there is. "
        f"All of it took {model.duration_s:.0f} s."
    )
    _say(console, Text(note, style="dim"))


def _spread(spread: models.Spread, unit: str, digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ±{(spread.high - spread.low) / 2:.{digits}f}{unit}"


def _ratio(ratio: models.Ratio) -> str:
    return f"{ratio.median:.3f} ±{(ratio.high - ratio.low) / 2:.3f}"


@table.register
def _check_hot_reload(model: models.CheckHotReload, console: Console) -> None:
    console.print(_case_matrix(model.cases))
    console.print(Text("survived/connections; woken: the server asleep in epoll_wait was woken", style="dim"))
    for case in model.cases:
        if not case.ok:
            where = f"{case.strategy} {case.family} {case.state}: "
            _say(console, Text(where, style="red") + Text(case.detail))
    if model.redistribution.moves or not model.redistribution.ok:
        _redistribution(model.redistribution, console)
    console.print()
    for note in model.notes:
        console.print(Text(note, style="dim"))
    wrong = sum(not case.ok for case in model.cases) + (not model.redistribution.ok)
    verdict = Text(f"failed: {wrong} not as expected", style="bold red") if wrong else Text("ok", style="bold green")
    console.print(verdict + Text(f", {len(model.cases)} cases on Linux {model.kernel} in {model.duration_s:.1f} s"))


def _case_matrix(cases: tuple[models.Case, ...]) -> Table:
    """A row for each way and family, a column for each state."""
    states = list(dict.fromkeys(case.state for case in cases))
    heads = [state.replace("new_syn_recv_", "new_syn_recv\n") for state in states]
    made = _table("reload by", "", *heads, "longest", right=("longest",))
    rows: dict[tuple[str, str], list[models.Case]] = {}
    for case in cases:
        rows.setdefault((case.strategy, case.family), []).append(case)
    for (strategy, family), row in rows.items():
        by_state = {case.state: case for case in row}
        longest = max(case.duration_s for case in row)
        _row(made, strategy, family, *(_case_cell(by_state.get(state)) for state in states), f"{longest:.2f} s")
    return made


def _case_cell(case: models.Case | None) -> Text:
    if case is None:
        return _cell(None)
    woken = {True: " woken", False: " asleep", None: ""}[case.woken]
    style = "bold red" if not case.ok else "green" if case.expected == "survive" else "dim"
    return Text(f"{'' if case.ok else '!'}{case.survived}/{case.connections}{woken}", style=style)


def _redistribution(model: models.Redistribution, console: Console) -> None:
    console.print()
    console.print("A request on each of A, B (old) and C, D (new); A, then B is closed:")
    made = _table("", *(move.queued_on for move in model.moves[:4]))
    made.show_header = False
    for strategy in dict.fromkeys(move.strategy for move in model.moves):
        paths = [
            " → ".join(dict.fromkeys((move.queued_on, *move.via, move.answered_by)))
            for move in model.moves
            if move.strategy == strategy
        ]
        _row(made, strategy, *paths)
    console.print(made)
    if not model.ok:
        _say(console, Text("redistribution: ", style="red") + Text(model.detail))


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many of how many are done, on stderr, if that is a terminal.

    It writes through a descriptor of its own: while a program is compiled, fd 2 is captured.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        shown = Progress(
            *columns, console=_console(stream), transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with shown:
            task = shown.add_task(label, total=None)
            yield lambda done, total: shown.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A function that shows one more of `total` as done, as progress() does."""
    with progress(label) as shown:
        done = itertools.count(1)
        yield lambda: shown(next(done), total)


@contextlib.contextmanager
def refreshing(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """A function that shows a model in place of the one before; as JSON, or off a terminal, one after another."""
    console = _console(sys.stdout)
    if as_json or not console.is_terminal:

        def append(model: Any) -> None:
            show(model, as_json)
            sys.stdout.flush()

        yield append
        return
    with console.screen(hide_cursor=True):

        def replace(model: Any) -> None:
            console.clear()
            table(model, console)

        yield replace


@table.register
def _reload(model: models.Reload, console: Console) -> None:
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    made.add_row(model.result, Text(f"{model.endpoint} in {model.duration_s:.2f} s, strategy {model.strategy}"))
    made.add_row("old", Text(_side(model.old)))
    made.add_row("new", Text(_side(model.new)))
    if model.switch_us is not None:
        made.add_row("switch", Text(f"{model.switch_us:g} µs"))
    for step in model.canary:
        made.add_row("canary", Text(_canary_step(step)))
    made.add_row("waiting", Text(_queues(model.queued_at_stop)))
    made.add_row("migrated", Text(_moved(model.migrated)))
    made.add_row("lost", _lost(model.lost))
    if model.lost.aborted_accepted:
        text = f"{model.lost.aborted_accepted} connections that a server had accepted and closed unread"
        made.add_row("aside", Text(text, style="yellow"))
    if model.leftovers and model.leftovers.connections:
        made.add_row("leftovers", _leftovers(model.leftovers))
    console.print(made)


def _canary_step(step: models.CanaryStep) -> str:
    total = step.to_new + step.to_old
    share = f"{step.to_new / total:.2%}" if total else "none"
    return f"{step.percent:g} % for {step.duration_s:.1f} s: {step.to_new} of {total} new connections ({share})"


def _leftovers(left: models.Leftovers) -> Text:
    idle = "" if left.idle_min_s is None else f", idle for {left.idle_min_s:.1f} to {left.idle_max_s:.1f} s"
    text = f"{_counted(left.connections, 'accepted connection')} of the old side, older than {left.older_than_s:.1f} s"
    text += f"{idle}; {left.ended} ended, {left.left} left after {left.waited_s:.1f} s"
    return Text(text, style="yellow" if left.left else "")


def _side(side: models.Side) -> str:
    pids = f"process {', '.join(map(str, side.pids))}" if side.pids else "no process"
    generation = f"generation {side.generation}, " if side.generation is not None else ""
    return f"{generation}{pids}, {_counted(len(side.listeners), 'listener')}"


def _queues(queues: models.Queues) -> str:
    half_open = "an unknown number" if queues.half_open is None else str(queues.half_open)
    return f"{queues.accept_queue} in accept queues and {half_open} half-open when the old side was stopped"


def _moved(moved: models.Migrated) -> str:
    if moved.established is None:
        return f"{moved.total} connections"
    return (
        f"{moved.established} established, {moved.syn_recv} syn_recv, {moved.new_syn_recv} new_syn_recv "
        f"(the kernel counts {moved.total})"
    )


def _lost(lost: models.Lost) -> Text:
    if not lost.migrate_failures and not lost.listen_drops:
        return Text("0 lost", style="bold green")
    return Text(
        f"{lost.migrate_failures} migrations failed; in the whole namespace {lost.listen_drops} drops and "
        f"{lost.listen_overflows} overflows of accept queues",
        style="bold red",
    )


class ReloadProgress:
    """The steps of a reload on stderr: a spinner on a terminal, a line a step elsewhere, notes only for JSON.

    It writes through a descriptor of its own: while a program is compiled, fd 2 is captured.
    """

    def __init__(self, quiet: bool) -> None:
        self._stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
        self._console = _console(self._stream)
        self._quiet = quiet
        self._spinner = self._console.status("", spinner="dots")

    def __enter__(self) -> ReloadProgress:
        if self._console.is_terminal and not self._quiet:
            self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()
        self._stream.close()

    def begin(self, name: str) -> None:
        self._spinner.update(name)

    def end(self, step: models.Step) -> None:
        if self._quiet or step.outcome == "skipped":
            return
        mark = Text("✓ ", style="green") if step.outcome == "done" else Text("✗ ", style="red")
        _say(self._console, mark + Text(f"{step.name:<9} {step.duration_s:7.3f} s"))

    def note(self, message: str) -> None:
        self._spinner.stop()  # from here the new server may write to the same terminal
        _say(self._console, Text(message))

    def warn(self, message: str) -> None:
        _say(self._console, Text("warning: ", style="bold yellow") + Text(message))


_SOCKET_COLUMNS = ("proto", "state", "local", "remote", "cookie", "pid", "command", "idle", "queues", "gen")


def _socket_cells(entry: models.Socket) -> tuple[str, ...]:
    waited_s = entry.idle_s if entry.age_s is None else entry.age_s
    receive, send = (
        (entry.accept_queue, entry.backlog) if entry.backlog is not None else (entry.receive_queue, entry.send_queue)
    )
    return (
        entry.protocol,
        entry.state,
        entry.local,
        entry.remote or "-",
        str(entry.cookie),
        "-" if entry.pid is None else str(entry.pid),
        entry.command or "-",
        "-" if waited_s is None else f"{waited_s:.1f}s",
        "-" if receive is None else f"{receive}/{send}",
        "-" if entry.generation is None else str(entry.generation),
    )


def _socket_lines(entries: Sequence[models.Socket], width: int, prefixes: Sequence[str] = ()) -> Iterator[str]:
    """A line for each socket where all fit into `width`, else two. Plain text: rich takes minutes for 100,000.

    Args:
        prefixes: a column in front, as long as `entries`.
    """
    front = [
        ("", *_SOCKET_COLUMNS),
        *((*prefix, *_socket_cells(entry)) for prefix, entry in _zipped(prefixes, entries)),
    ]
    widths = [max(map(len, column)) for column in zip(*front, strict=True)]
    skipped = 0 if widths[0] else 1
    if sum(widths) + 2 * len(widths) <= width:
        for cells in front:
            yield "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True))[2 * skipped :].rstrip()
        return
    for first, proto, state, local, remote, *rest in front[1:]:
        yield f"{first}  {proto} {state} {local} → {remote}"[2 * skipped :]
        named = zip(_SOCKET_COLUMNS[4:], rest, strict=True)
        yield "    " + "  ".join(f"{name} {cell}" for name, cell in named if cell != "-")


def _zipped(prefixes: Sequence[str], entries: Sequence[models.Socket]) -> Iterator[tuple[tuple[str], models.Socket]]:
    for index, entry in enumerate(entries):
        yield (prefixes[index] if prefixes else "",), entry


def _write_lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.file.write(line + "\n")


def _promise(exactly_once: bool | None, protocols: str) -> str:
    return {
        True: f"{protocols}: the kernel promises to show each socket exactly once",
        False: f"{protocols}: the kernel does not promise to show each socket exactly once",
        None: f"{protocols}: whether the kernel shows each socket exactly once is not known",
    }[exactly_once]


@table.register
def _sockets(model: models.Sockets, console: Console) -> None:
    _write_lines(_socket_lines(model.sockets, console.width), console)
    protocols = " and ".join(protocol.upper() for protocol in model.protocols)
    text = f"{len(model.sockets)} of {model.walked} sockets. {_promise(model.exactly_once, protocols)}."
    _say(console, Text(text, style="dim"))


@table.register
def _destroy(model: models.Destroy, console: Console) -> None:
    entries = [ending.socket for ending in model.endings]
    _write_lines(_socket_lines(entries, console.width, [ending.result for ending in model.endings]), console)
    for detail in dict.fromkeys(ending.detail for ending in model.endings if ending.detail):
        _say(console, Text(f"refused: {detail}", style="yellow"))
    _say(console, Text(_destroyed(model), style="bold"))
    if model.exactly_once is not True:
        _say(console, Text(_promise(model.exactly_once, "The walk") + "; look again with 'sockets'.", style="yellow"))


def _destroyed(model: models.Destroy) -> str:
    results = [ending.result for ending in model.endings]
    done = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results)) or "no socket to end"
    if model.dry_run and results:
        done = f"would end {_counted(len(results), 'socket')} by {model.engine}; add --yes to do it"
    kinds = {"listeners": model.listeners, "half-open": model.request_sockets, "time_wait": model.time_wait}
    left = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    return done + (f"; left alone: {left}" if left else "")


@table.register
def _autolowat_attachment(model: models.AutolowatAttachment, console: Console) -> None:
    done = "already attached" if model.result == "unchanged" else "attached"
    _say(console, f"{model.cgroup}  {done}: engine {model.engine}, framing {model.framing}, {_ports(model.ports)}")


def _ports(ports: Sequence[int]) -> str:
    return f"ports {', '.join(map(str, ports))}" if ports else "sockets that opt in"


@table.register
def _autolowat_detached(model: models.AutolowatDetached, console: Console) -> None:
    _say(console, f"{model.cgroup}  detached; {_counted(model.sockets, 'socket')} at SO_RCVLOWAT 1")


@table.register
def _autolowat_status(model: models.AutolowatStatus, console: Console) -> None:
    if not model.attachments:
        console.print("AutoLOWAT is attached to no cgroup.")
    for entry in model.attachments:
        _say(
            console,
            Text(entry.cgroup, style="bold")
            + Text(f"  engine {entry.engine}, framing {entry.framing}, {_ports(entry.ports)}, role {entry.role}"),
        )
        if not entry.working:
            _say(console, Text("  not working: an attach or detach was cut off; run it again", style="yellow"))
        agreed = "" if entry.agreed is None else f"agreed {entry.agreed}, "
        _say(console, f"  sockets {entry.sockets}, following {entry.following}; {agreed}opted in {entry.opted_in}")
        _say(console, f"  frames {entry.frames}, wake-ups saved {entry.wakeups_saved}; fail-opens: {_fails(entry)}")


def _fails(entry: models.Autolowat) -> str:
    reasons = dataclasses.asdict(entry.fail_opens)
    return ", ".join(f"{name} {number}" for name, number in reasons.items() if number) or "none"


@table.register
def _check_rpc_framing(model: models.CheckRpcFraming, console: Console) -> None:
    made = _table("case", "family", "frames", "wake-ups", "stalls", "", right=("frames", "wake-ups", "stalls"))
    for case in model.cases:
        style = "" if case.ok else "red"
        _row(
            made,
            *(case.name, case.family, case.frames, case.wakeups, case.stalls),
            "ok" if case.ok else f"FAILED: {case.detail}",
            style=style,
        )
    console.print(made)
    verdict = "every case came out as expected" if model.ok else "FAILED"
    _say(console, f"{model.kernel}, engine {model.engine}: {verdict}, {model.duration_s:.1f} s")


@table.register
def _bench_rpc_framing(model: models.BenchRpcFraming, console: Console) -> None:
    numbers = ("bytes", "segments", "wake-ups", "syscalls", "CPU µs", "CPU", "frames/s", "speed", "p50 µs", "p99 µs")
    made = _table("bytes", "segments", "arm", *numbers[2:], right=numbers)
    for size in model.sizes:
        for arm in size.arms:
            is_base = arm.name == "off"
            _row(
                made,
                *(size.size, size.segments, arm.name, f"{arm.wakeups_per_frame:.2f}", f"{arm.syscalls_per_frame:.2f}"),
                *(f"{arm.cpu_us_per_frame:.1f}", None if is_base else _ratio(arm.cpu_relative)),
                *(f"{arm.frames_per_s:.0f}", None if is_base else _ratio(arm.speed_relative)),
                *(f"{arm.p50_us:.0f}", f"{arm.p99_us:.0f}"),
            )
    console.print(made)
    note = (
        f"Linux {model.kernel}, {'both ends on one CPU' if model.cpus == 1 else 'each end on its own CPU'}, "
        f"{model.rounds} rounds, {model.duration_s:.0f} s. For each frame: wake-ups and system "
        "calls of the receiver, CPU time of both ends. CPU and speed relative to off in the same round: median ± half "
        "the interquartile range."
    )
    _say(console, Text(note, style="dim"))
