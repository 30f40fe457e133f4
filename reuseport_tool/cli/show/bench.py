"""What a bench has measured."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import make_table, row, say
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table


def _put(console: Console, made: Table, note: str) -> None:
    """A table with a note below it."""
    put(console, made)
    say(console, Text(note, style="dim"))


@table.register
def _bench_select(model: models.BenchSelect, console: Console) -> None:
    numbers = ("listeners", "conn/s", "wall clock", "CPU time", "ns/run", "ratio")
    made = make_table("listeners", "program", "conn/s", "wall clock", "CPU time", "ns/run", "ratio", right=numbers)
    for arm in model.arms:
        is_base = arm.program == "none"
        row(
            made,
            arm.listeners,
            arm.program,
            f"{arm.connections_per_s:.0f}",
            None if is_base else _ratio(arm.relative),
            None if is_base else _ratio(arm.cpu_relative),
            arm.ns_per_run,
            None if arm.ns_relative is None else f"{arm.ns_relative:.2f}",
        )
    _put(
        console,
        made,
        f"Linux {model.kernel}, {model.rounds} rounds of {model.connections_per_round} connections, "
        f"{model.duration_s:.0f} s. Connections per second relative to no program: "
        "median ± half the interquartile range. ratio: ns/run relative to bench_select.",
    )


@table.register
def _bench_udp(model: models.BenchUdp, console: Console) -> None:
    numbers = ("flows", "datagrams/s", "to no program", "ns/run", "to none")
    made = make_table("keeps", *numbers, right=numbers)
    for arm in model.arms:
        relative = None if arm.ns_per_run is None else _ratio(arm.relative)
        ratio = None if arm.ns_relative is None else f"{arm.ns_relative:.2f}"
        row(made, arm.program, arm.flows, f"{arm.datagrams_per_s:.0f}", relative, arm.ns_per_run, ratio)
    _put(
        console,
        made,
        f"Linux {model.kernel}, {model.rounds} rounds of {model.datagrams_per_round} datagrams, "
        f"{model.duration_s:.0f} s. keeps: what the program keeps together, - without a program. Datagrams per second "
        "relative to no program: median ± half the interquartile range. to none: ns/run relative to the program that "
        "keeps nothing.",
    )


@table.register
def _bench_sockets(model: models.BenchSockets, console: Console) -> None:
    made = make_table("protocol", "sockets", "arm", "ms", "to ss", right=("sockets", "ms", "to ss"))
    for size in model.sizes:
        for arm in size.arms:
            relative = None if arm.name == "ss" else _ratio(arm.relative)
            row(made, size.protocol, size.sockets, arm.name, f"{arm.milliseconds:.1f}", relative)
    _put(
        console,
        made,
        f"Linux {model.kernel}, {model.ss}, {model.rounds} rounds, {model.duration_s:.0f} s. Wall time relative to ss: "
        "median ± half the interquartile range. walk: into records of a running process; list: with filters, "
        "text and processes; sockets: our whole command; ss -p: with processes.",
    )


@table.register
def _bench_speed(model: models.BenchSpeed, console: Console) -> None:
    made = make_table("command", "ms", "to imports", right=("ms", "to imports"))
    for figure in model.figures:
        row(made, figure.name, f"{figure.duration_s * 1000:.0f}", figure.relative and _ratio(figure.relative))
    _put(
        console,
        made,
        f"Linux {model.kernel}, {model.rounds} rounds, {model.duration_s:.0f} s. Whole processes, programs from the "
        "cache. imports: python -c 'import click, rich.console'. Relative to it: median ± half the interquartile "
        "range.",
    )


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
        "reset by kernel",
        "accepted of them",
    )
    made = make_table("", *numbers, right=numbers)
    for arm in model.arms:
        if arm.lost is None or arm.longest_wait_ms is None or arm.duration_s is None:
            row(made, arm.name, arm.detail)
            continue
        spreads = (_spread(arm.lost, ""), _spread(arm.longest_wait_ms, " ms"), _spread(arm.duration_s, " s", 2))
        losses = (arm.refused, arm.reset, arm.unanswered, arm.timed_out)
        row(
            made,
            arm.name,
            *spreads,
            arm.connections,
            *losses,
            arm.migrated,
            *_resets(arm.resets),
            style="red" if sum(losses) else "green",
        )
    _put(
        console,
        made,
        f"Linux {model.kernel}, {model.rounds} rounds, {model.clients} clients at a time. Of one reload, median ± half "
        "the interquartile range: connections lost, longest time from connect to the first byte, duration. The rest "
        "is of all rounds. Reset by kernel: the kernel's own count of resets and refusals.",
    )
    console.print()
    _closes(model, console)


def _resets(resets: models.Resets | None) -> tuple[str, str]:
    """How many the kernel reset or refused, and how many of them a server had accepted."""
    return ("?", "?") if resets is None else (str(resets.total), str(resets.accepted))


def _closes(model: models.BenchReload, console: Console) -> None:
    ratios = ("program/sysctl", "by CPU time", "any program/sysctl", "program/any program")
    numbers = ("queued", "program", "each", "sysctl", "each ", *ratios)
    made = make_table(*numbers, right=numbers)
    for size in model.closes:
        row(
            made,
            size.queued,
            _spread(size.program_us, " µs"),
            f"{size.program_us_per_connection:.2f} µs",
            _spread(size.sysctl_us, " µs"),
            f"{size.sysctl_us_per_connection:.2f} µs",
            *map(_ratio, (size.relative, size.cpu_relative, size.minimal_relative, size.over_minimal)),
        )
    _put(
        console,
        made,
        f"close(2) of the last old listener, in which the queued connections move: {model.close_rounds} rounds, "
        "median ± half the interquartile range. any program: the smallest one there is. "
        f"All of it took {model.duration_s:.0f} s.",
    )


def _spread(spread: models.Spread, unit: str, digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ±{(spread.high - spread.low) / 2:.{digits}f}{unit}"


def _ratio(ratio: models.Spread) -> str:
    return f"{ratio.median:.3f} ±{(ratio.high - ratio.low) / 2:.3f}"


@table.register
def _bench_rpc_framing(model: models.BenchRpcFraming, console: Console) -> None:
    numbers = ("bytes", "segments", "wake-ups", "syscalls", "CPU µs", "CPU", "frames/s", "speed", "p50 µs", "p99 µs")
    made = make_table("bytes", "segments", "arm", *numbers[2:], right=numbers)
    for size in model.sizes:
        for arm in size.arms:
            is_base = arm.name == "off"
            row(
                made,
                *(size.size, size.segments, arm.name, f"{arm.wakeups_per_frame:.2f}", f"{arm.syscalls_per_frame:.2f}"),
                *(f"{arm.cpu_us_per_frame:.1f}", None if is_base else _ratio(arm.cpu_relative)),
                *(f"{arm.frames_per_s:.0f}", None if is_base else _ratio(arm.speed_relative)),
                *(f"{arm.p50_us:.0f}", f"{arm.p99_us:.0f}"),
            )
    _put(
        console,
        made,
        f"Linux {model.kernel}, {'both ends on one CPU' if model.cpus == 1 else 'each end on its own CPU'}, "
        f"{model.rounds} rounds, {model.duration_s:.0f} s. For each frame: wake-ups and system "
        "calls of the receiver, CPU time of both ends. CPU and speed relative to off in the same round: median ± half "
        "the interquartile range.",
    )
