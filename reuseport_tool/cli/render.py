"""The only home of rich: every model as a table or as JSON, from the same fields."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
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


def show(model: Any, as_json: bool) -> None:
    """Print a result on stdout."""
    if as_json:
        print(to_json(model))
    else:
        table(model, _console(sys.stdout))


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
    console.print(Text("error: ", style="bold red") + Text(report.message), soft_wrap=True)
    if report.hint:
        console.print(Text("hint:  ", style="bold") + Text(report.hint), soft_wrap=True)


def warn(message: str) -> None:
    _console(sys.stderr).print(Text("warning: ", style="bold yellow") + Text(message), soft_wrap=True)


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
    console.print(Text(group.endpoint, style="bold") + Text(f"  {group.netns}") + _program(group), soft_wrap=True)
    if group.stale:
        console.print(
            Text("  stale: pins are left, but the program does not run; 'attach' or 'detach' mends it", style="yellow"),
            soft_wrap=True,
        )
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
            style={"foreign": "yellow", "old": "dim"}.get(entry.flag, ""),
        )
    if group.listeners:
        console.print(made)
    if group.counters:
        console.print(Text(_counters(group.counters), style="dim"), soft_wrap=True)


def _program(group: models.Group) -> Text:
    if group.program is None:
        return Text("  no program", style="dim")
    if group.program.policy is None:
        return Text(f"  foreign program {group.program.name} (id {group.program.id})", style="yellow")
    return Text(
        f"  {group.program.policy} (program {group.program.id}), working generation {group.working_generation or '-'}"
    )


def _counters(counters: models.Counters) -> str:
    return (
        f"selected {counters.selected}, fallback {counters.fallback}, dropped {counters.dropped}; migrated: "
        f"established {counters.migrated_established}, syn_recv {counters.migrated_syn_recv}, "
        f"new_syn_recv {counters.migrated_new_syn_recv}"
    )


@table.register
def _attached(model: models.AttachReport, console: Console) -> None:
    for entry in model.attached:
        done = {
            "attached": f"attached {entry.program.policy}",
            "replaced": f"replaced the program by {entry.program.policy}",
            "unchanged": f"already attached: {entry.program.policy}",
        }[entry.result]
        console.print(
            f"{entry.endpoint}  {done} (program {entry.program.id}), {len(entry.registered)} listeners registered, "
            f"working generation {entry.generation}",
            soft_wrap=True,
        )


@table.register
def _detached(model: models.DetachReport, console: Console) -> None:
    for entry in model.detached:
        text = "program and pins removed" if entry.result == "detached" else "pins removed; no program was running"
        console.print(f"{entry.endpoint}  {text}", soft_wrap=True)


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
        console.print(f"{entry.endpoint}  {text}", soft_wrap=True)


@table.register
def _migrate_req(model: models.MigrateReq, console: Console) -> None:
    state = "on" if model.enabled else "off"
    console.print(f"{model.netns}  net.ipv4.tcp_migrate_req is {state}{' now' if model.changed else ''}")


@table.register
def _check_hot_reload(model: models.CheckHotReload, console: Console) -> None:
    console.print(_case_matrix(model.cases))
    console.print(Text("survived/connections; woken: the server asleep in epoll_wait was woken", style="dim"))
    for case in model.cases:
        if not case.ok:
            where = f"{case.strategy} {case.family} {case.state}: "
            console.print(Text(where, style="red") + Text(case.detail), soft_wrap=True)
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
        console.print(Text("redistribution: ", style="red") + Text(model.detail), soft_wrap=True)


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
