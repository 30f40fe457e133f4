"""Groups, and what a verb did to them."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted, make_table, row, say
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table

_GONE_SHOWN = 3
"""With JSON all are shown."""


@table.register
def _status(model: models.Status, console: Console) -> None:
    if not model.groups:
        console.print("No SO_REUSEPORT group listens here.")
    for index, group in enumerate(model.groups):
        if index:
            console.print()
        _group(group, console)
    if model.gone:
        say(console, Text(_gone(model.gone), style="yellow"))
    if model.unseen:
        say(console, Text(f"Programs of this tool are not told apart here: {model.unseen}.", style="dim"))


def _gone(pins: tuple[models.GonePins, ...]) -> str:
    named = [f"{entry.endpoint} in {entry.netns}" for entry in pins[:_GONE_SHOWN]]
    more = f", and {len(pins) - _GONE_SHOWN} more" if len(pins) > _GONE_SHOWN else ""
    return f"Pins of network namespaces that are gone: {', '.join(named)}{more}. 'detach --gone' removes them."


def _group(group: models.Group, console: Console) -> None:
    say(console, Text(group.endpoint, style="bold") + Text(f"  {group.netns}") + _program(group))
    for problem in group.problems:
        say(console, Text(f"  {problem.kind}: {problem.detail}", style="bold yellow"))
    if group.reload and group.reload.running:
        say(console, _transaction(group.reload))
    is_udp = group.endpoint.startswith("udp:")
    queues = ("queue bytes", "drops") if is_udp else ("queue", "backlog", "half-open")
    numbers = ("cookie", "pid", "uid", "gen", "slot", *queues)
    made = make_table("cookie", "pid", "command", "uid", "gen", "slot", *queues, "flag", right=numbers)
    for entry in group.listeners:
        row(
            made,
            entry.cookie,
            entry.pid,
            entry.command,
            entry.uid,
            entry.generation,
            entry.slot,
            *((entry.receive_queue, entry.drops) if is_udp else (entry.accept_queue, entry.backlog, entry.half_open)),
            entry.flag,
            style={"foreign": "yellow", "old": "dim", "canary": "cyan"}.get(entry.flag, ""),
        )
    if group.listeners:
        put(console, made)
    elif group.last_reload and group.program is None:
        say(console, Text(f"  nobody listens here; 'detach {group.endpoint}' removes the record", style="yellow"))
    if group.flows:
        say(console, Text(_flow_table(group.flows), style="dim"))
    if group.last_reload:
        say(console, _last_reload(group.last_reload))
    if group.followed:
        say(console, _followed(group.followed))
    if group.counters:
        say(console, Text(_counters(group.counters), style="dim"))


def _flow_table(table: models.FlowTable) -> str:
    counters = table.counters
    text = (
        f"flows by {table.mode}: {table.flows} of at most {table.capacity}; new {counters.new}, "
        f"kept {counters.kept} datagrams, gone {counters.gone}"
    )
    if table.connection_ids is None:
        return text
    return (
        f"{text}; {table.connection_ids} connection IDs, learnt {counters.learnt}, "
        f"moved {counters.moved}, to the older generation {counters.older}"
    )


@table.register
def _flows(model: models.Flows, console: Console) -> None:
    if not model.flows:
        console.print("No flows are recorded.")
        return
    numbers = ("generation", "slot", "idle s")
    made = make_table("group", "source", "destination", *numbers, right=numbers)
    for flow in model.flows:
        row(made, flow.endpoint, flow.source, flow.destination, flow.generation, flow.slot, f"{flow.idle_s:.1f}")
    put(console, made)


def _transaction(reload: models.Transaction) -> Text:
    began = time.strftime("%F %T", time.localtime(reload.begun_at))
    return Text(f"  a reload is in the step {reload.step!r} (process {reload.pid}, begun {began})", style="cyan")


def _last_reload(last: models.LastReload) -> Text:
    ended = time.strftime("%F %T", time.localtime(last.ended_at))
    lost = "losses not measured" if last.lost is None else f"{last.lost} lost"
    moved = "" if last.moved is None else f", {last.moved} moved"
    why = f": {last.failure}" if last.failure else ""
    return Text(
        f"  last reload: {last.result} at {ended} in {last.duration_s:.1f} s{moved}, {lost}{why}",
        style="bold red" if last.lost or last.result != "reloaded" else "dim",
    )


def _program(group: models.Group) -> Text:
    if group.reuseport is False:
        return Text("  no SO_REUSEPORT: no other listener can join, so there is nothing to attach to", style="yellow")
    if group.mptcp:
        return Text(
            "  MPTCP: the kernel runs no program for it; start the server without: GODEBUG=multipathtcp=0 for Go, "
            "or 'sysctl net.mptcp.enabled=0'",
            style="yellow",
        )
    if group.program is None:
        return Text("  no program", style="dim")
    if group.program.policy is None:
        return Text(f"  foreign program {group.program.name} (id {group.program.id})", style="yellow")
    return Text(
        f"  {group.program.policy} (id {group.program.id}), working generation {group.working_generation or '-'}"
        + (f", generation {group.canary.generation} gets {group.canary.percent:g} %" if group.canary else "")
    )


def _followed(seen: models.Followed) -> Text:
    resets = seen.resets
    refused = "an unknown number of" if resets.refused is None else resets.refused
    return Text(
        f"  followed by process {seen.pid} since {time.strftime('%F %T', time.localtime(seen.since))}: "
        f"{resets.lost} lost ({resets.never_accepted} before accept, {resets.handshakes} in the handshake, "
        f"{refused} refused SYNs); {resets.accepted} accepted ones reset by the server itself",
        style="bold red" if resets.lost else "dim",
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
            "repaired": f"pins restored: {entry.program.policy}",
            "replaced": f"replaced the program with {entry.program.policy}",
            "unchanged": f"already attached: {entry.program.policy}",
        }[entry.result]
        registered = f"{counted(len(entry.registered), 'listener')} registered, working generation {entry.generation}"
        say(console, f"{entry.endpoint}  {done} (id {entry.program.id}), {registered}")


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
        "events-lost": "events were lost; looked at all listeners again",
        "detached": f"detached by another run: {model.detail}",
        "failed": f"failed: {model.detail}",
        "stopped": "stopped; program and registrations stay",
    }[model.event]
    say(console, f"{model.endpoint}  {text}")


@table.register
def _detached(model: models.DetachReport, console: Console) -> None:
    if not model.detached:
        say(console, "Nothing of this tool is attached here.")
    for entry in model.detached:
        text = {
            "detached": "program and pins removed",
            "cleaned": "pins removed; no program was running",
            "gone": "pins removed; their network namespace is gone",
        }[entry.result]
        say(console, f"{entry.endpoint}  {text}")


@table.register
def _maps(model: models.Maps, console: Console) -> None:
    for text in model.damaged:
        say(console, Text(f"{text}; 'status' says how to repair it", style="yellow"))
    if not model.maps:
        console.print("No maps of this tool in this network namespace.")
        return
    made = make_table(
        "endpoint",
        "generation",
        "",
        "members",
        "capacity",
        "slot→cookie",
        right=("generation", "members", "capacity"),
    )
    for entry in model.maps:
        slots = "  ".join(f"{slot.slot}→{slot.cookie}" for slot in entry.slots)
        row(
            made,
            entry.endpoint,
            entry.generation,
            "working" if entry.working else " ",
            entry.members,
            entry.capacity,
            slots,
        )
    put(console, made)


@table.register
def _map_changes(model: models.MapChanges, console: Console) -> None:
    for entry in model.changes:
        text = {
            "added": f"slot {entry.slot} of generation {entry.generation} has the listener with cookie {entry.cookie}",
            "removed": f"slot {entry.slot} of generation {entry.generation} is empty now; it had cookie {entry.cookie}",
            "switched": f"generation {entry.generation} is the working one",
        }[entry.change]
        say(console, f"{entry.endpoint}  {text}")


@table.register
def _migrate_req(model: models.MigrateReq, console: Console) -> None:
    state = "on" if model.enabled else "off"
    console.print(f"{model.netns}  net.ipv4.tcp_migrate_req is {state}{' now' if model.changed else ''}")
