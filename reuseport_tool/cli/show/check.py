"""What a check has proved."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import cell, make_table, row, say
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table


@table.register
def _check_hot_reload(model: models.CheckHotReload, console: Console) -> None:
    put(console, _case_matrix(model.cases))
    console.print(
        Text("survived/connections; woken: the server asleep in epoll_wait was woken; max: duration", style="dim")
    )
    for case in model.cases:
        if not case.ok:
            where = f"{case.strategy} {case.family} {case.state}: "
            say(console, Text(where, style="red") + Text(case.detail))
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
    made = make_table("reload by", "", *heads, "max", right=("max",))
    rows: dict[tuple[str, str], list[models.Case]] = {}
    for case in cases:
        rows.setdefault((case.strategy, case.family), []).append(case)
    for (strategy, family), entries in rows.items():
        by_state = {case.state: case for case in entries}
        longest = max(case.duration_s for case in entries)
        row(made, strategy, family, *(_case_cell(by_state.get(state)) for state in states), f"{longest:.2f} s")
    return made


def _case_cell(case: models.Case | None) -> Text:
    if case is None:
        return cell(None)
    woken = {True: " woken", False: " asleep", None: ""}[case.woken]
    style = "bold red" if not case.ok else "green" if case.expected == "survive" else "dim"
    return Text(f"{'' if case.ok else '!'}{case.survived}/{case.connections}{woken}", style=style)


def _redistribution(model: models.Redistribution, console: Console) -> None:
    console.print()
    console.print("A request on each of A, B (old) and C, D (new); A, then B is closed:")
    made = make_table("", *(move.queued_on for move in model.moves[:4]))
    made.show_header = False
    for strategy in dict.fromkeys(move.strategy for move in model.moves):
        paths = [
            " → ".join(dict.fromkeys((move.queued_on, *move.via, move.answered_by)))
            for move in model.moves
            if move.strategy == strategy
        ]
        row(made, strategy, *paths)
    put(console, made)
    if not model.ok:
        say(console, Text("redistribution: ", style="red") + Text(model.detail))


@table.register
def _check_rpc_framing(model: models.CheckRpcFraming, console: Console) -> None:
    made = make_table("case", "family", "frames", "wake-ups", "stalls", "", right=("frames", "wake-ups", "stalls"))
    for case in model.cases:
        style = "" if case.ok else "red"
        row(
            made,
            *(case.name, case.family, case.frames, case.wakeups, case.stalls),
            "ok" if case.ok else f"FAILED: {case.detail}",
            style=style,
        )
    put(console, made)
    verdict = "every case came out as expected" if model.ok else "FAILED"
    say(console, f"{model.kernel}, engine {model.engine}: {verdict}, {model.duration_s:.1f} s")


@table.register
def _check_udp_reload(model: models.CheckUdpReload, console: Console) -> None:
    numbers = ("datagrams", "lost", "time")
    made = make_table("case", "", "flows", *numbers, "expected", right=numbers)
    for case in model.cases:
        duration = f"{case.duration_s:.1f} s"
        style = "" if case.ok else "red"
        row(
            made,
            *(case.name, case.family, case.flows, case.datagrams, case.lost, duration, case.expected),
            style=style,
        )
    put(console, made)
    for case in model.cases:
        if not case.ok:
            say(console, Text(f"{case.name} {case.family} {case.flows}: ", style="red") + Text(case.detail))
    wrong = sum(not case.ok for case in model.cases)
    verdict = Text(f"failed: {wrong} not as expected", style="bold red") if wrong else Text("ok", style="bold green")
    console.print(verdict + Text(f", {len(model.cases)} cases on Linux {model.kernel} in {model.duration_s:.1f} s"))
