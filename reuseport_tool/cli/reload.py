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
from reuseport_tool.reload import run as reload
from reuseport_tool.reload import thresholds
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.thresholds import Threshold


class ThresholdType(ParamType[Threshold]):
    """NAME or NAME=COUNT."""

    name = "COUNTER[=N]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        return value if isinstance(value, Threshold) else thresholds.parse(str(value))


@click.command(
    "reload",
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
@click.argument("endpoint", type=ENDPOINT)
@click.argument("new_command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
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
@click.option("--old-pid", type=PID, multiple=True, help="The process to stop.  [default: the owner]")
@click.option("--stop-signal", type=SignalType(), default="TERM", show_default=True, help="How to stop it.")
@click.option("--stop-command", metavar="COMMAND", help="Stop the old side by this command instead.")
@click.option("--listeners", type=COUNT, help="Wait for so many new listeners in each group.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the new server's output.  [default: stderr]",
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
@click.option("--force", is_flag=True, help="Go on although socket options differ.")
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
@click.option("--resume", is_flag=True, help="Finish a reload that was killed.")
@click.option("--abort", is_flag=True, help="Undo a reload that was killed.")
@pass_context
def command(
    ctx: Context,
    /,
    endpoint: Endpoint,
    new_command: tuple[str, ...],
    strategy: str | None,
    policy: str | None,
    old_pid: tuple[int, ...],
    resume: bool,
    abort: bool,
    lock_timeout_s: float,
    **options: object,
) -> int:
    """Hand ENDPOINT from the running server to a new one.

    The new server starts beside the old one, new connections go to it from one instant on, and when
    it has proved that it accepts, the old one is stopped. What waited in the old one's accept queues,
    and what was in the middle of the handshake, moves to the new one.

    Until the old side is stopped every failure, and Ctrl-C, ends as it began: the old server works on,
    and the new one is stopped, also one that was given by --new-pid. If the tool itself is killed, the group
    works on as it is; 'status' shows where it was, --resume finishes it and --abort undoes it.
    """
    if resume or abort:
        return _go_on(ctx, endpoint, resume, abort, lock_timeout_s)
    plan = Plan(
        command=new_command or None,
        strategy=Strategy(strategy) if strategy else None,
        policy=Policy(policy) if policy else None,
        old_pids=old_pid,
        lock_timeout_s=lock_timeout_s,
        **options,  # type: ignore[arg-type]  # click's names and types are the plan's
    )
    with show.ReloadProgress(ctx.json) as shown:
        report = reload.reload(
            endpoint, plan, ctx.bpffs, Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        )
    return _show(ctx, report)


def _go_on(ctx: Context, endpoint: Endpoint, resume: bool, abort: bool, wait_s: float) -> int:
    """Finish or undo what another run began."""
    own = {"endpoint", "resume", "abort", "lock_timeout_s"}
    click_context = click.get_current_context()
    others = [
        name
        for name in click_context.params
        if name not in own and click_context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if others or (resume and abort):
        raise UsageError(
            "--resume and --abort go on with the options of the reload that was killed",
            hint="give one of them, and besides only --wait",
        )
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        act = reload.resume if resume else reload.abort
        report = act(endpoint, ctx.bpffs, progress, wait_s)
    return _show(ctx, report)


def _show(ctx: Context, report: Reload) -> int:
    show.outcome(report, ctx.json)
    return 1 if report.lost.migrate_failures else 0
