"""reload ENDPOINT …"""

from __future__ import annotations

import signal
from pathlib import Path

import click

from reuseport_tool.cli import render
from reuseport_tool.cli.context import ENDPOINT, Context, examples, pass_context
from reuseport_tool.models import Endpoint, Policy, Strategy
from reuseport_tool.operations import reload
from reuseport_tool.operations.reload_plan import Plan, Progress


class SignalType(click.ParamType[signal.Signals]):
    """TERM, SIGTERM or 15."""

    name = "SIGNAL"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> signal.Signals:
        text = str(value).upper()
        try:
            return signal.Signals(int(text)) if text.isdigit() else signal.Signals[f"SIG{text.removeprefix('SIG')}"]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not a signal", param, ctx)


_SECONDS = click.FloatRange(min=0.0)


@click.command(
    "reload",
    short_help="Replace the server behind a port without losing a connection.",
    epilog=examples(
        "reuseport-tool reload 8080 -- gunicorn --reuse-port -b :8080 app:app",
        "reuseport-tool reload 8080 --new-pid 4242 --stop-signal QUIT",
        "reuseport-tool reload 443 --run 'haproxy -D -f /etc/haproxy.cfg -sf 4242'",
        "reuseport-tool reload 443 --run 'systemctl restart web' --health-command 'curl -fs localhost'",
    ),
)
@click.argument("endpoint", type=ENDPOINT)
@click.argument("new_command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
@click.option("--new-pid", type=click.IntRange(1), help="The new server runs already, as this process.")
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
@click.option("--old-pid", type=click.IntRange(1), multiple=True, help="The process to stop.  [default: the owner]")
@click.option("--stop-signal", type=SignalType(), default="TERM", show_default=True, help="How to stop it.")
@click.option("--stop-command", metavar="COMMAND", help="Stop the old side by this command instead.")
@click.option("--listeners", type=click.IntRange(1), help="Wait for so many new listeners in each group.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the new server's output.  [default: stderr]",
)
@click.option("--health-command", metavar="COMMAND", help="Must succeed after the switch, or all is rolled back.")
@click.option("--probe/--no-probe", default=True, help="Open one connection, so that there is one to accept.")
@click.option("--force", is_flag=True, help="Go on although socket options differ.")
@click.option("--start-timeout", "start_timeout_s", type=_SECONDS, default=30.0, show_default=True, metavar="SECONDS")
@click.option("--health-timeout", "health_timeout_s", type=_SECONDS, default=10.0, show_default=True, metavar="SECONDS")
@click.option("--drain-timeout", "drain_timeout_s", type=_SECONDS, default=70.0, show_default=True, metavar="SECONDS")
@click.option("--stop-timeout", "stop_timeout_s", type=_SECONDS, default=30.0, show_default=True, metavar="SECONDS")
@click.option("--wait", "lock_timeout_s", type=_SECONDS, default=0.0, metavar="SECONDS", help="For another run's lock.")
@pass_context
def command(
    ctx: Context,
    /,
    endpoint: Endpoint,
    new_command: tuple[str, ...],
    strategy: str | None,
    policy: str | None,
    old_pid: tuple[int, ...],
    **options: object,
) -> int:
    """Hand ENDPOINT from the running server to a new one.

    The new server starts beside the old one, new connections go to it from one instant on, and when
    it has proved that it accepts, the old one is stopped. What waited in the old one's accept queues,
    and what was in the middle of the handshake, moves to the new one.

    Until the old side is stopped every failure, and Ctrl-C, ends as it began: the old server works on,
    and the new one is stopped, also one that was given by --new-pid.
    """
    plan = Plan(
        command=new_command or None,
        strategy=Strategy(strategy) if strategy else None,
        policy=Policy(policy) if policy else None,
        old_pids=old_pid,
        **options,  # type: ignore[arg-type]  # click's names and types are the plan's
    )
    with render.ReloadProgress(ctx.json) as show:
        report = reload.reload(endpoint, plan, ctx.bpffs, Progress(show.begin, show.end, show.note, show.warn))
    render.show(report, ctx.json)
    return 1 if report.lost.migrate_failures else 0
