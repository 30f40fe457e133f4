"""The report of a reload."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted
from reuseport_tool.cli.show.tables import table


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
    text = f"{counted(left.connections, 'accepted connection')} of the old side, older than {left.older_than_s:.1f} s"
    text += f"{idle}; {left.ended} ended, {left.left} left after {left.waited_s:.1f} s"
    return Text(text, style="yellow" if left.left else "")


def _side(side: models.Side) -> str:
    pids = f"process {', '.join(map(str, side.pids))}" if side.pids else "no process"
    generation = f"generation {side.generation}, " if side.generation is not None else ""
    return f"{generation}{pids}, {counted(len(side.listeners), 'listener')}"


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
