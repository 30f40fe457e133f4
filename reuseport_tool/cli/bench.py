"""bench select"""

from __future__ import annotations

import sys

import click

from reuseport_tool.cli import render
from reuseport_tool.cli.context import Context, examples, pass_context
from reuseport_tool.operations import bench_select


@click.group("bench", short_help="Measure what the programs cost, side by side in one run.")
def command() -> None:
    """Measure what the programs cost, as ratios of arms that take turns in one run."""


@command.command(
    "select",
    short_help="New connections per second, with and without a program.",
    epilog=examples(
        "reuseport-tool bench select",
        "reuseport-tool bench select --rounds 200",
        "reuseport-tool --json bench select | jq '.arms[] | select(.program == \"hash\")'",
    ),
)
@click.option("--rounds", type=click.IntRange(2, 10_000), default=60, show_default=True, help="Turns of each arm.")
@click.option(
    "--connections",
    type=click.IntRange(1, 100_000),
    default=512,
    show_default=True,
    help="Connections of each arm in each round.",
)
@pass_context
def select(ctx: Context, rounds: int, connections: int) -> None:
    """Measure how much the program slows down new connections, in a throw-away network namespace.

    The arms are no program, one that only passes, the smallest one that selects, and this tool's
    `hash`, with 1, 16 and 256 listeners. Ratios are against no program in the same round: the median,
    and the middle half of the rounds. Nanoseconds for each run come from the kernel's BPF statistics,
    in rounds of their own, because statistics cost time; they are off again afterwards.
    """
    total = rounds + bench_select.STATISTICS_ROUNDS
    with click.progressbar(length=total, label="rounds", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        report = bench_select.select(rounds, connections, lambda: bar.update(1))
    render.show(report, ctx.json)
