"""bench select|reload|sockets|speed|udp|rpc-framing"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reuseport_tool.bench import reload as bench_reload
from reuseport_tool.bench import rpc_framing as bench_rpc_framing
from reuseport_tool.bench import select as bench_select
from reuseport_tool.bench import sockets as bench_sockets
from reuseport_tool.bench import speed as bench_speed
from reuseport_tool.bench import udp as bench_udp
from reuseport_tool.cli import pictures, show
from reuseport_tool.cli.compat import VerbGroup
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import count, counts, members
from reuseport_tool.cli.pictures import TIMELINE, TRACE
from reuseport_tool.models import Protocol


@click.group("bench", cls=VerbGroup)
def command() -> None:
    """Measure what the programs cost, as ratios of arms that take turns in one run.

    \b
    Examples:
      reuseport-tool bench reload --rounds 2
      reuseport-tool --json bench select | jq .arms
    """


@command.command("select", short_help="New connections per second, with and without a program.")
@count("--rounds", 60, "Turns of each arm.", least=2, most=10_000)
@count("--connections", 512, "Connections of each arm in each round.", least=1, most=100_000)
@pass_context
def select(ctx: Context, rounds: int, connections: int) -> None:
    """Measure how much the program slows down new connections, in a throw-away network namespace.

    The arms are: no program, a program that only passes, the smallest program that selects, and this tool's
    `hash`, each with 1, 16 and 256 listeners. A ratio compares with no program in the same round; shown are the
    median and the middle half of the rounds. Nanoseconds per run come from the kernel's BPF statistics. These cost
    time, so they are switched on only for rounds of their own.

    \b
    Examples:
      reuseport-tool bench select
      reuseport-tool bench select --rounds 200
      reuseport-tool --json bench select | jq .arms
    """
    total = rounds + bench_select.STATISTICS_ROUNDS
    with click.progressbar(length=total, label="rounds", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        report = bench_select.select(rounds, connections, lambda: bar.update(1))
    show.result(report, ctx.json)


@command.command("reload", short_help="What clients notice of a restart, for seven ways to do it.")
@count("--rounds", 5, "Turns of each arm.", least=2)
@count("--clients", 256, "Connections at a time.", least=8, most=3000)
@count("--close-rounds", 11, "Turns of each close(2).", least=2)
@TIMELINE
@TRACE
@pass_context
def reload(
    ctx: Context, rounds: int, clients: int, close_rounds: int, timeline: Path | None, trace: Path | None
) -> None:
    """Measure how many connections a restart under load loses, how long clients wait, and how long it takes.

    Arms that take turns in a throw-away network namespace, each with the same load: a plain restart (the new server
    starts, the old one gets SIGTERM), accept-drain (the old server accepts until EAGAIN before it closes), haproxy -sf,
    haproxy -x (the new haproxy is passed the old one's descriptors), net.ipv4.tcp_migrate_req with a plain restart,
    and `reload` with the strategies drain and migrate. Half of the clients are slow to send: these are half-open.

    The second part measures close(2) of a listener with 1 to 4,096 connections in its accept queue: the time in which
    the kernel moves them to another listener, with our program and with tcp_migrate_req.

    With --timeline or --trace, one more reload, with a canary, is drawn together with its clients' waits.

    \b
    Examples:
      reuseport-tool bench reload
      reuseport-tool bench reload --rounds 20 --clients 256
      reuseport-tool bench reload --rounds 2 --timeline reload.svg
      reuseport-tool --json bench reload | jq '.arms[] | {name, lost}'
    """
    with show.steps("rounds", rounds + close_rounds) as step:
        report = bench_reload.bench(rounds, clients, close_rounds, ctx.bpffs, on_round=step)
    if timeline or trace:
        pictures.draw(*bench_reload.one_reload(clients, ctx.bpffs), timeline, trace)
    show.result(report, ctx.json)


@command.command("sockets", short_help="How long `sockets` takes, compared with ss.")
@count("--rounds", 9, "Turns of each arm.", least=2)
@counts("--sockets", "sizes", bench_sockets.SIZES, "This many sockets. Repeatable.", most=500_000)
@members("--protocol", "protocols", Protocol, "Only this protocol. Repeatable.")
@pass_context
def sockets(ctx: Context, rounds: int, sizes: tuple[int, ...], protocols: tuple[Protocol, ...]) -> None:
    """Measure `sockets` against ss, in a throw-away network namespace.

    The arms take turns: the walk into records of this process; the same with filters, text and processes; the whole
    command with its start; `ss -tan` (or `-uan`); and `ss` with processes. A ratio compares wall time with that of
    `ss` in the same round; shown are the median and the middle half of the rounds.

    \b
    Examples:
      reuseport-tool bench sockets
      reuseport-tool bench sockets --sockets 1000 --sockets 50000 --rounds 20
      reuseport-tool --json bench sockets --protocol udp | jq .sizes
    """
    chosen = protocols or tuple(Protocol)
    rising = sorted(set(sizes))
    with show.steps("rounds", rounds * len(chosen) * len(rising)) as step:
        report = bench_sockets.bench(rising, chosen, rounds, step)
    show.result(report, ctx.json)


@command.command("speed", short_help="How long attach, status and reload take as whole processes.")
@count("--rounds", 15, "Turns of each command.", least=2)
@count("--workers", 16, "Workers of the large server.", least=1, most=64)
@count("--addresses", 70, "Addresses that each worker listens on.", least=1, most=500)
@pass_context
def speed(ctx: Context, rounds: int, workers: int, addresses: int) -> None:
    """Measure whole processes, in a throw-away network namespace, with the cache of programs filled.

    `attach` and `status` of a small group take turns with the import of click and rich.console alone. Then a server
    with many listeners is attached, shown, reloaded and detached once.

    \b
    Examples:
      reuseport-tool bench speed
      reuseport-tool --json bench speed --rounds 30 | jq .figures
    """
    with show.steps("rounds", rounds) as step:
        report = bench_speed.bench(rounds, workers, addresses, ctx.bpffs, step)
    show.result(report, ctx.json)


@command.command("udp", short_help="Datagrams per second, by what the program keeps together.")
@count("--rounds", 15, "Turns of each arm.", least=2)
@count("--datagrams", 10_000, "Datagrams of each arm in each round.", least=1, most=1_000_000)
@counts("--flows", "flows", bench_udp.FLOWS, "This many flows, of up to 224 bytes each. Repeatable.", most=4_000_000)
@pass_context
def udp(ctx: Context, rounds: int, datagrams: int, flows: tuple[int, ...]) -> None:
    """Measure what the program costs for a UDP datagram, in a throw-away network namespace.

    The arms are no program, and each value of `attach --flows` with each number of flows. They take turns in a random
    order. Nanoseconds for each run come from the kernel's BPF statistics, in rounds of their own, because statistics
    cost time; they are off again afterwards.

    \b
    Examples:
      reuseport-tool bench udp
      reuseport-tool bench udp --rounds 30 --flows 1 --flows 50000
      reuseport-tool --json bench udp | jq '.arms[] | {program, ns_per_run}'
    """
    with show.steps("rounds", rounds + bench_udp.STATISTICS_ROUNDS) as step:
        report = bench_udp.bench(rounds, datagrams, sorted(set(flows)), step)
    show.result(report, ctx.json)


@command.command("rpc-framing", short_help="Wake-ups and CPU time of a frame, with and without AutoLOWAT.")
@count("--rounds", 15, "Turns of each arm.", least=2)
@count("--cpus", 1, "1: server and client share a CPU. 2: each has its own.", least=1, most=2)
@pass_context
def rpc_framing(ctx: Context, rounds: int, cpus: int) -> None:
    """Send frames in 1 to 64 segments and wait for each answer, in a throw-away network namespace.

    The arms take turns: plain sockets outside of the cgroup (`off`), SO_RCVLOWAT set by the application to the
    size of all frames, and each engine that this kernel has. Server and client are processes of their own. On one CPU
    a wake-up is a switch between them, as on a busy machine; on two it is an interrupt that wakes the idle CPU.

    \b
    Examples:
      reuseport-tool bench rpc-framing
      reuseport-tool bench rpc-framing --cpus 2
      reuseport-tool --json bench rpc-framing --rounds 50 | jq .sizes
    """
    with show.progress("rounds") as progress:
        report = bench_rpc_framing.bench(rounds, cpus, progress)
    show.result(report, ctx.json)
