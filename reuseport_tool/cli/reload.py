"""reload ENDPOINT …"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from reuseport_tool.cli import deploy_file, show
from reuseport_tool.cli.compat import ParamType
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import duration, file, wait
from reuseport_tool.cli.pictures import TIMELINE, TRACE, drawn
from reuseport_tool.cli.types import COUNT, ENDPOINT, PID, OneOf, SharesType, SignalType
from reuseport_tool.errors import UsageError
from reuseport_tool.models import Endpoint, FlowMode, Policy, Reload, Strategy
from reuseport_tool.record import record
from reuseport_tool.reload import thresholds, transaction
from reuseport_tool.reload import unit as units
from reuseport_tool.reload.plan import Hook, Plan, Progress
from reuseport_tool.reload.run import STEPS
from reuseport_tool.reload.thresholds import Threshold


class ThresholdType(ParamType[Threshold]):
    """NAME or NAME=COUNT."""

    name = "COUNTER[=N]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Threshold:
        return value if isinstance(value, Threshold) else thresholds.parse(str(value))


_NEW_COMMAND = "reuseport_tool.new_command"
_HOOK = "on_"


def _hook_options(function: Callable[..., int]) -> Callable[..., int]:
    """--on-STEP for each step; the help shows one for all."""
    for name in reversed(STEPS):
        shown = name == STEPS[0]
        others = ", ".join(STEPS[1:-1])
        option = click.option(
            f"--on-{name}",
            f"{_HOOK}{name}",
            multiple=True,
            metavar="COMMAND",
            hidden=not shown,
            help=f"Run this after the step {name}; if it fails, the step fails. There is such an option for each step: "
            f"{others} and {STEPS[-1]}."
            if shown
            else None,
        )
        function = option(function)
    return function


class _WithCommand(click.Command):
    """What stands after `--` is the new server's command, and a name in place of an endpoint is a deploy file's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_NEW_COMMAND] = tuple(args[at + 1 :])
            args = args[:at]
        if not ctx.resilient_parsing:
            args = self._with_file(ctx, args)
        return super().parse_args(ctx, args)

    def _with_file(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments with a file's endpoints in place of its name; its options become defaults."""
        words = self._endpoints(ctx, args) or []  # an error is told by the parser itself
        named = [(word, file) for word in words if (file := deploy_file.find(word)) is not None]
        if not named:
            return args
        if len(words) > 1:
            raise UsageError("a deploy file already names its endpoints", hint="give only its name")
        deploy = deploy_file.read(named[0][1], self)
        ctx.default_map = {**(ctx.default_map or {}), **deploy.options}
        if deploy.command:
            ctx.meta.setdefault(_NEW_COMMAND, deploy.command)
        # The name may also be the value of an option: it is the last one without which no endpoint is left.
        at = next(
            index
            for index in reversed(range(len(args)))
            if args[index] == named[0][0] and self._endpoints(ctx, args[:index] + args[index + 1 :]) == []
        )
        return [*args[:at], *deploy.endpoints, *args[at + 1 :]]

    def _endpoints(self, ctx: click.Context, args: list[str]) -> list[str] | None:
        """The words that stand for endpoints; None where the options make no sense."""
        try:
            found, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return None
        words = found.get("endpoints")  # a marker of click's where there are none
        return [str(word) for word in words] if isinstance(words, tuple) else []

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] ENDPOINT… [-- COMMAND…]")


@record
class _Call:
    """What the command line says besides the plan."""

    wait_s: float
    unit: str | None
    timeline: Path | None
    trace: Path | None
    dry_run: bool
    resume: bool
    abort: bool


@click.command("reload", cls=_WithCommand)
@click.argument("endpoints", type=ENDPOINT, nargs=-1, required=True, metavar="ENDPOINT…")
@click.option("--new-pid", type=PID, help="The new server is already running as this process.")
@click.option("--run", metavar="COMMAND", help="A shell command that makes the server replace itself.")
@click.option("--unit", metavar="NAME@", help="Switch between the instances NAME@a and NAME@b of a systemd unit.")
@click.option(
    "--strategy",
    type=OneOf(Strategy),
    help="How to save queued connections.  [default: migrate; drain if the kernel cannot migrate]",
)
@click.option(
    "--policy",
    type=OneOf(Policy),
    help="How the listeners share connections.  [default: the current one, or hash]",
)
@click.option("--only", is_flag=True, help="Hand over only the named groups of the old processes.")
@click.option(
    "--drop", type=ENDPOINT, multiple=True, help="Drain this group; the new server does not serve it. Repeatable."
)
@click.option(
    "--old-pid",
    "old_pids",
    type=PID,
    multiple=True,
    help="The process to stop. Repeatable.  [default: the topmost owner of the listeners]",
)
@click.option(
    "--stop-signal", type=SignalType(), default="TERM", show_default=True, help="The signal that stops the old server."
)
@click.option("--stop-command", metavar="COMMAND", help="Stop the old server by this command instead.")
@click.option("--listeners", type=COUNT, help="Wait for this many new listeners in each group.")
@file(
    "--output",
    "File for the output of the new server.  [default: the terminal, the journal or a file named in the report]",
)
@click.option("--health-command", metavar="COMMAND", help="Roll back unless this command succeeds after the switch.")
@click.option(
    "--health-url", metavar="URL", help="Roll back unless the new server answers with 2xx or 3xx, before the switch."
)
@click.option(
    "--canary",
    type=SharesType(),
    default=(),
    metavar="PERCENT,…",
    help="First give the new server these shares of new connections, one after another.",
)
@duration("--step", "30s", "Duration of each share.")
@click.option(
    "--abort-on",
    type=ThresholdType(),
    multiple=True,
    metavar="COUNTER[=N]",
    help=f"Roll back when this counter grows by N (1 by default). COUNTER is one of {', '.join(thresholds.COUNTERS)}. "
    "Repeatable.",
)
@click.option(
    "--flows",
    type=OneOf(FlowMode),
    help="Which UDP datagrams stay with the old server: none, those of a known address, or also those of a known QUIC "
    "connection.  [default: as attached; none on ports 53 and 853]",
)
@duration("--flow-timeout", "30s", "A UDP flow has ended after this time without a datagram.")
@duration(
    "--settle", "1s", "The old UDP server has answered everything after this time without sending. --run waits for it."
)
@click.option(
    "--health-datagram", metavar="HEX", help="Roll back unless each UDP group of the new server answers this datagram."
)
@click.option(
    "--probe/--no-probe", default=True, show_default=True, help="Open a connection to see that the new server accepts."
)
@click.option(
    "--force", is_flag=True, help="Go on even if socket options differ or other processes keep old listeners open."
)
@duration("--start-timeout", "30s", "How long the new server may take to listen.")
@duration("--health-timeout", "10s", "How long each health check may take.")
@duration(
    "--drain-timeout",
    None,
    "How long the connections of the old server may take to end.  [default: 70s where they must end, else 0]",
)
@click.option(
    "--kill-leftovers",
    is_flag=True,
    help="After --drain-timeout, end the accepted connections that the old server still holds.",
)
@duration("--stop-timeout", "30s", "How long the old server may take to close its listeners.")
@wait
@_hook_options
@duration("--hook-timeout", "30s", "How long each --on-… command may take.")
@TIMELINE
@TRACE
@click.option("--dry-run", is_flag=True, help="Only show what would be done and what would prevent it.")
@click.option("--resume", is_flag=True, help="Finish a reload that was killed.")
@click.option("--abort", is_flag=True, help="Undo a reload that was killed.")
@pass_context
def command(ctx: Context, /, endpoints: tuple[Endpoint, ...], **options: Any) -> int:
    """Replace a running server with its next version, in all the groups that it serves.

    The new server starts beside the old one. When it listens in every group, a single switch sends all new
    connections to it. When the new server has proved that it accepts, the tool stops the old one. Connections that
    waited for the old server move to the new one.

    Any failure or Ctrl-C before that stop rolls back: the old server works as before, and the tool ends everything
    that it has started. It leaves a server named by --new-pid alone. If the tool itself is killed, 'status' shows the
    step, --resume finishes the reload and --abort undoes it.

    \b
    Examples:
      reuseport-tool reload 8080 -- gunicorn --reuse-port -b :8080 app:app
      reuseport-tool reload 8080 --new-pid 4242 --stop-signal QUIT
      reuseport-tool reload 443 --run 'haproxy -D -f /etc/haproxy.cfg -sf 4242'
      reuseport-tool reload 443 --run 'systemctl restart web' \\
          --health-command 'curl -fs localhost'
      reuseport-tool reload 8080 --canary 5,25,100 --step 30s \\
          --health-url http://localhost:8080/ -- ./server-2
      reuseport-tool reload 8080 --unit web@
      reuseport-tool reload web --timeline reload.svg
      reuseport-tool reload 8080 --resume
    """
    call = _Call(**{name: options.pop(name) for name in _Call.__dataclass_fields__})
    with drawn(call.timeline, call.trace) as draw:
        if call.resume or call.abort:
            return _show(ctx, _go_on(ctx, endpoints, call), draw)
        hooks = _hooks(options)
        server = click.get_current_context().meta.get(_NEW_COMMAND) or None
        plan = Plan(command=server, lock_timeout_s=call.wait_s, hooks=hooks, **options)
        if call.unit is not None:
            return _show(ctx, _take_turns(ctx, endpoints, plan, call.unit, call.dry_run), draw)
        if call.dry_run:
            return _try(ctx, endpoints, plan)
        return _show(ctx, _run(ctx, endpoints, plan), draw)


def _hooks(options: dict[str, Any]) -> tuple[Hook, ...]:
    """Take the hooks out of the options."""
    found = []
    for name in STEPS:
        found += [Hook(step=name, command=command) for command in options.pop(f"{_HOOK}{name}")]
    return tuple(found)


def _take_turns(ctx: Context, endpoints: tuple[Endpoint, ...], plan: Plan, unit: str, dry_run: bool) -> Reload:
    """Reload to the other instance of a template unit."""
    if plan.command or plan.new_pid or plan.run or plan.stop_command:
        raise UsageError(
            "--unit itself starts the new server and stops the old one", hint="give no other option that does"
        )
    if dry_run:
        raise UsageError(
            "--dry-run starts nothing, so --unit has no new instance to look at", hint="try it with --new-pid"
        )
    with units.started(unit, plan.start_timeout_s, plan.stop_timeout_s) as twin:
        return _run(ctx, endpoints, replace(plan, new_pid=twin.pid, stop_command=twin.stop_command))


def _run(ctx: Context, endpoints: tuple[Endpoint, ...], plan: Plan) -> Reload:
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        return transaction.reload(endpoints, plan, ctx.bpffs, progress)


def _try(ctx: Context, endpoints: tuple[Endpoint, ...], plan: Plan) -> int:
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        tried = transaction.dry_run(endpoints, plan, ctx.bpffs, progress)
    show.result(tried, ctx.json)
    return tried.code


def _go_on(ctx: Context, endpoints: tuple[Endpoint, ...], call: _Call) -> Reload:
    """Finish or undo what another run began."""
    own = {"endpoints", "resume", "abort", "wait_s", "timeline", "trace"}
    click_context = click.get_current_context()
    others = [
        name
        for name in click_context.params
        if name not in own and click_context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if others or (call.resume and call.abort) or _NEW_COMMAND in click_context.meta:
        raise UsageError(
            "--resume and --abort use the options of the killed reload",
            hint="with either of them, give only --wait, --timeline and --trace",
        )
    if len(endpoints) > 1:
        raise UsageError("--resume and --abort take one endpoint", hint="name any endpoint of the killed reload")
    with show.ReloadProgress(ctx.json) as shown:
        progress = Progress(begin=shown.begin, end=shown.end, note=shown.note, warn=shown.warn)
        act = transaction.resume if call.resume else transaction.abort
        return act(endpoints[0], ctx.bpffs, progress, call.wait_s)


def _show(ctx: Context, report: Reload, draw: Callable[[Reload], None]) -> int:
    draw(report)
    show.outcome(report, ctx.json)
    lost = report.lost.migrate_failures or (report.resets.lost if report.resets else 0)
    return 1 if lost or any(group.has_lost for group in report.datagrams) else 0
