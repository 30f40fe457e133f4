"""The report of a reload."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table


@table.register
def _reload(model: models.Reload, console: Console) -> None:
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    made.add_row(model.result, Text(f"{model.endpoint} in {model.duration_s:.2f} s, strategy {model.strategy}"))
    made.add_row("old", Text(_side(model.old)))
    made.add_row("new", Text(_side(model.new)))
    if len(model.groups) > 1:
        made.add_row("groups", Text(", ".join(model.groups)))
    if model.output:
        made.add_row("output", Text(model.output))
    if model.switch_us is not None:
        made.add_row("switch", Text(f"{model.switch_us:g} µs"))
    for step in model.canary:
        made.add_row("canary", Text(_canary_step(step)))
    made.add_row("waiting", Text(_queues(model.queued_at_stop)))
    made.add_row("migrated", Text(_moved(model.migrated)))
    if model.balance:
        for name, text in _balance(model.balance):
            made.add_row(f"  {name}", Text(text))
    made.add_row("lost", _lost(model.lost, model.resets))
    if model.resets_old and model.resets_new and (model.resets_old.total or model.resets_new.total):
        made.add_row("reset by", Text(f"old server {_by(model.resets_old)}; new server {_by(model.resets_new)}"))
    for group in model.datagrams:
        made.add_row("datagrams", _handed_over(group))
    if model.leftovers and model.leftovers.connections:
        made.add_row("leftovers", _leftovers(model.leftovers))
    put(console, made)


def _canary_step(step: models.CanaryStep) -> str:
    total = step.to_new + step.to_old
    share = f"{step.to_new / total:.2%}" if total else "none"
    return f"{step.percent:g} % for {step.duration_s:.1f} s: {step.to_new} of {total} new connections ({share})"


def _handed_over(group: models.HandedOver) -> Text:
    what = "datagrams" if group.flows == models.FlowMode.NONE else "flows"
    text = f"{group.endpoint}: {_known(group.to_old)} {what} to the old server, {_known(group.to_new)} to the new one"
    losses = {
        "bytes unread by the old server": group.unread,
        "dropped by the old sockets": group.drops_old,
        "dropped by the new sockets": group.drops_new,
        "flows cut": group.cut,
        "flows evicted": group.evicted,
        "that waited for a server": group.not_given,
    }
    if group.given:
        text += f"; {group.given} that waited for a server were given on"
    lost = ", ".join(f"{count} {name}" for name, count in losses.items() if count)
    unknown = ", ".join(f"an unknown number of {name}" for name, count in losses.items() if count is None)
    shown = ", ".join(filter(None, (lost, unknown))) or "0 lost"
    return Text(f"{text}; {shown}", style="bold red" if lost else "yellow" if unknown else "")


def _known(count: int | None) -> str:
    return "an unknown number of" if count is None else str(count)


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


def _balance(balance: models.Balance) -> Iterator[tuple[str, str]]:
    """What became of those that waited, and of those that came until the old listeners closed. It adds up."""
    if balance.later:
        yield "came later", f"{balance.later}, before the old listeners closed"
    yield "= moved", f"{balance.moved} to another listener"
    yield "+ old side", f"{balance.old_side} answered by the old side, or given up by their clients"
    yield "+ lost", f"{balance.lost} reset"
    yield "+ half-open", f"{balance.half_open} still wait for the final ACK"


def _lost(lost: models.Lost, resets: models.Resets | None) -> Text:
    """The kernel's count of resets where there is one; what was not counted is unknown, and not 0."""
    drops = f"; in the whole namespace {lost.listen_drops} drops and {lost.listen_overflows} overflows of accept queues"
    drops = drops if lost.listen_drops else ""
    if resets is None:
        known = f"unknown, as resets cannot be seen here; {lost.migrate_failures} migrations failed{drops}"
        return Text(known, style="bold red" if lost.migrate_failures else "yellow")
    own = _own_doing(resets.accepted)
    if not resets.lost and not lost.migrate_failures:
        return Text(f"no connection{own}{drops}", style="yellow" if own or drops else "bold green")
    refused = "an unknown number of" if resets.refused is None else str(resets.refused)
    return Text(
        f"{counted(resets.lost, 'connection')}: {resets.never_accepted} waited for accept(), "
        f"{resets.handshakes} for their final ACK, "
        f"{refused} SYNs were refused; {lost.migrate_failures} migrations failed{own}{drops}",
        style="bold red",
    )


def _by(resets: models.SideResets) -> str:
    return f"{resets.never_accepted} before accept() and {resets.accepted} after it"


def _own_doing(accepted: int) -> str:
    if not accepted:
        return ""
    return f"; {counted(accepted, 'connection')} reset after a server had accepted them: the server's own doing"


@table.register
def _dry_run(model: models.DryRun, console: Console) -> None:
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    made.add_row("dry run", Text(f"strategy {model.strategy}; nothing was changed"))
    for group in model.groups:
        made.add_row("group", Text(_planned(group)))
    made.add_row("stop", Text(_stopped(model)))
    for warning in model.warnings:
        made.add_row("warning", Text(warning, style="yellow"))
    if model.refusal:
        made.add_row("refused", Text(f"{model.refusal} (exit {model.code})", style="bold red"))
        made.add_row("hint", Text(model.hint or "-"))
    else:
        made.add_row("result", Text("nothing is known that would stop it", style="bold green"))
    put(console, made)


def _planned(group: models.PlannedGroup) -> str:
    text = f"{group.endpoint}: {counted(group.old_listeners, 'old listener')}"
    text += f", {group.other_listeners} of other instances" if group.other_listeners else ""
    text += f", {group.new_listeners} new" if group.new_listeners else ""
    return text + (", given up by --drop" if group.dropped else "")


def _stopped(model: models.DryRun) -> str:
    named = (f"{pid} ({command})" for pid, command in zip(model.pids, model.commands, strict=True))
    return f"{model.stop} to process {', '.join(named)}" if model.pids else model.stop
