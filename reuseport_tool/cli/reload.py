"""reload ENDPOINT …"""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from reuseport_tool.cli import show
from reuseport_tool.cli.compat import ParamType
from reuseport_tool.cli.context import Context, examples, pass_context
from reuseport_tool.cli.types import COUNT, DURATION, ENDPOINT, PID, SharesType, SignalType
from reuseport_tool.errors import UsageError
from reuseport_tool.models import Endpoint, Policy, Reload, Strategy
from reuseport_tool.reload import thresholds, transaction
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.thresholds import Threshold


class ThresholdType(ParamType[Threshold]):
    """NAME or NAME=COUNT."""

    name = "COUNTER[=N]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        return value if isinstance(value, Threshold) else thresholds.parse(str(value))


_NEW_COMMAND = "reuseport_tool.new_command"


class _WithCommand(click.Command):
    """What stands after `--` is the new server's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_NEW_COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] ENDPOINT… [-- COMMAND…]")


@click.command(
    "reload",
    cls=_WithCommand,
    short_help="Replace the server behind a port without losing a connection.",
    epilog=examples(
        "reuseport-tool reload 8080 -- gunicorn --reuse-port -b :8080 app:app",
        "reuseport-tool reload 8080 --new-pid 4242 --stop-signal QUIT",
        "reuseport-tool reload 443 --run 'haproxy -D -f /etc/haproxy.cfg -sf 4242'",
        "reuseport-tool reload 443 --run 'systemctl restart web' --health-command 'curl -fs localhost'",
        "reuseport-tool reload 8080 --canary 5,25,100 --step 30s --health-url http://localhost:8080/ -- ./server-2",
        "reuseport-tool reload 8080 --resume",
    ),
)
@click.argument("endpoints", type=ENDPOINT, nargs=-1, required=True, metavar="ENDPOINT…")
@click.option("--new-pid", type=PID, help="The new server runs already, as this process.")
@click.option("--run", metavar="COMMAND", help="A shell command that makes the server replace itself.")
@click.option(
    "--strategy",
    type=click.Choice([strategy.value for strategy in Strategy]),
    help="How to move what waits in the queues.  [default: migrate, or drain where the kernel cannot]",
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    help="How the listeners share connections.  [default: as now, or hash]",
)
@click.option("--only", is_flag=True, help="Hand over no other groups of the old processes than the named ones.")
@click.option("--drop", type=ENDPOINT, multiple=True, help="A group that the new server gives up; it is drained.")
@click.option("--old-pid", type=PID, multiple=True, help="The process to stop.  [default: the owner]")
@click.option("--stop-signal", type=SignalType(), default="TERM", show_default=True, help="How to stop it.")
@click.option("--stop-command", metavar="COMMAND", help="Stop the old side by this command instead.")
@click.option("--listeners", type=COUNT, help="Wait for so many new listeners in each group.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the new server's output.  [default: a terminal, else the journal or a file that is named]",
)
@click.option("--health-command", metavar="COMMAND", help="Must succeed after the switch, or all is rolled back.")
@click.option(
    "--health-url", metavar="URL", help="Must answer with 2xx or 3xx, asked of the new server before the switch."
)
@click.option(
    "--canary", type=SharesType(), default=(), metavar="PERCENT,…", help="Give it these shares first, one by one."
)
@click.option("--step", "step_s", type=DURATION, default="30", show_default=True, help="How long each share lasts.")
@click.option(
    "--abort-on",
    type=ThresholdType(),
    multiple=True,
    metavar="COUNTER[=N]",
    help=f"Roll back when it grows by N (1): {', '.join(thresholds.COUNTERS)}. May be repeated.",
)
@click.option("--probe/--no-probe", default=True, help="Open one connection, so that there is one to accept.")
@click.option(
    "--force", is_flag=True, help="Go on although options differ, or some process keeps the old listeners open."
)
@click.option("--start-timeout", "start_timeout_s", type=DURATION, default="30", show_default=True)
@click.option("--health-timeout", "health_timeout_s", type=DURATION, default="10", show_default=True)
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=DURATION,
    help="Wait so long for the old server's connections.  [default: 70s where they must end, else 0]",
)
@click.option("--kill-leftovers", is_flag=True, help="End the accepted connections that the old server has left then.")
@click.option("--stop-timeout", "stop_timeout_s", type=DURATION, default="30", show_default=True)
@click.option("--wait", "lock_timeout_s", type=DURATION, default="0", help="For another run's lock.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what would stop it.")
@click.option("--resume", is_flag=True, help="Finish a reload that was killed.")
@click.option("--abort", is_flag=True, help="Undo a reload that was killed.")
@pass_context
def command(
    ctx: Context,
    /,
    endpoints: tuple[Endpoint, ...],
    strategy: str | None,
    policy: str | None,
    old_pid: tuple[int, ...],
    dry_run: bool,
    resume: bool,
    abort: bool,
    lock_timeout_s: float,
    **options: object,
) -> int:
    """Replace a running server with its next version, in all the groups that it serves.

    The new server starts beside the old one. When it listens in every group, a single switch sends all new
    connections to it. When it has proved that it accepts, the old server is stopped, and the connections that waited
    for it move to the new one.

    Until the old server is stopped, every failure and Ctrl-C is undone: the old server works on, and everything that
    was started is ended. A server that was given by --new-pid is left alone. If the tool itself is killed, 'status'
    shows where it was, --resume finishes the reload and --abort undoes it.
    """
    if resume or abort:
        return _go_on(ctx, endpoints, resume, abort, lock_timeout_s)
    plan = Plan(
        command=click.get_current_context().meta.get(_NEW_COMMAND) or None,
        strategy=Strategy(strategy) if strategy else None,
        policy=Policy(policy) if policy else None,
        old_pids=old_pid,
        lock_timeout_s=lock_timeout_s,
        **options,  # type: ignore[arg-type]  # click's names and types are the plan's
    )
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        if dry_run:
            tried = transaction.dry_run(endpoints, plan, ctx.bpffs, progress)
        else:
            report = transaction.reload(endpoints, plan, ctx.bpffs, progress)
    if dry_run:
        show.result(tried, ctx.json)
        return tried.code
    return _show(ctx, report)


def _go_on(ctx: Context, endpoints: tuple[Endpoint, ...], resume: bool, abort: bool, wait_s: float) -> int:
    """Finish or undo what another run began."""
    own = {"endpoints", "resume", "abort", "lock_timeout_s"}
    click_context = click.get_current_context()
    others = [
        name
        for name in click_context.params
        if name not in own and click_context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if others or (resume and abort) or _NEW_COMMAND in click_context.meta:
        raise UsageError(
            "--resume and --abort go on with the options of the reload that was killed",
            hint="give one of them, and besides only --wait",
        )
    if len(endpoints) > 1:
        raise UsageError("--resume and --abort take one endpoint", hint="one of those of the reload that was killed")
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        act = transaction.resume if resume else transaction.abort
        report = act(endpoints[0], ctx.bpffs, progress, wait_s)
    return _show(ctx, report)


def _show(ctx: Context, report: Reload) -> int:
    show.outcome(report, ctx.json)
    lost = report.lost.migrate_failures or (report.resets.lost if report.resets else 0)
    return 1 if lost else 0
