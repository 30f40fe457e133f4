"""The entry point: global options, the verbs, and errors turned into exit codes."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from reuseport_tool import __version__
from reuseport_tool.cli import complete
from reuseport_tool.cli.compat import NoVerb, VerbGroup
from reuseport_tool.cli.context import Context
from reuseport_tool.cli.show import streams
from reuseport_tool.errors import Interrupted, MissingCapability, ToolError, UsageError, want_of_room
from reuseport_tool.models import ErrorReport
from reuseport_tool.record import record


@record
class _Verb:
    """A verb: the module in this folder that has it, and what it does in a line.

    `prints_json` is False where the output has a format of its own, so that only errors become JSON.
    """

    module: str
    short_help: str
    prints_json: bool = True


_VERBS = {
    "doctor": _Verb(module="doctor", short_help="Try every kernel feature that the tool uses."),
    "status": _Verb(module="status", short_help="Show groups, listeners, generations, queues and counters."),
    "attach": _Verb(module="attach", short_help="Let a BPF program choose the listener of each new connection."),
    "detach": _Verb(module="detach", short_help="Remove the program; the kernel chooses again."),
    "reload": _Verb(module="reload", short_help="Replace the server behind a port without losing a connection."),
    "map": _Verb(module="maps", short_help="Show and change the REUSEPORT_SOCKARRAY maps by hand."),
    "flows": _Verb(module="flows", short_help="List the UDP flows that a group keeps together."),
    "migrate-req": _Verb(module="migrate_req", short_help="Read or set net.ipv4.tcp_migrate_req."),
    "sockets": _Verb(module="sockets", short_help="List sockets with cookie, process, queues and idle time."),
    "destroy": _Verb(module="destroy", short_help="End sockets. Without --yes, only show which."),
    "autolowat": _Verb(
        module="autolowat", short_help="One wake-up for each RPC frame instead of one for each segment."
    ),
    "check": _Verb(module="check", short_help="Prove that it works on this kernel, in namespaces of its own."),
    "bench": _Verb(module="bench", short_help="Measure what the programs cost, side by side in one run."),
    "compile": _Verb(module="compile", short_help="Compile all programs for machines without a compiler."),
    "metrics": _Verb(
        module="metrics", short_help="Print groups, listeners and counters for Prometheus.", prints_json=False
    ),
    "completion": _Verb(
        module="completion", short_help="Print the script that completes this command in a shell.", prints_json=False
    ),
}
"""Here, so that a list of the verbs imports none of them."""


_GC_THRESHOLD = 50_000
"""Objects until the first collection: importing makes thousands that stay, and each look at them is in vain."""
_WORDS = "reuseport_tool.words"
_VARIABLES = "REUSEPORT_TOOL"
_JSON_VARIABLE = f"{_VARIABLES}_JSON"


class _Verbs(VerbGroup):
    """Imports a verb's module when it is asked for: most need a part of the libraries only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        module = importlib.import_module(f"reuseport_tool.cli.{_VERBS[name].module}")
        command = module.command
        assert isinstance(command, click.Command)
        command.short_help = _VERBS[name].short_help
        _take_json(command, "the result" if _VERBS[name].prints_json else "errors")
        _name_variables(command, f"{_VARIABLES}_{name}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.short_help) for name, verb in _VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        verbs = [
            CompletionItem(name, help=verb.short_help) for name, verb in _VERBS.items() if name.startswith(incomplete)
        ]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = _words(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            return _answer(error, ctx)


def _take_json(command: click.Command, what: str) -> None:
    """Let a verb, and all below it, have --json as well, so that it may stand anywhere before --."""
    if not any("--json" in param.opts for param in command.params):
        command.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                allow_from_autoenv=False,
                callback=_want_json,
                help=f"Print {what} as JSON.",
            )
        )
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_json(below, what)


def _name_variables(command: click.Command, prefix: str) -> None:
    """Let each option come from the environment by its own name: click takes that of the parameter, stop_timeout_s."""
    for param in command.params:
        if isinstance(param, click.Option) and param.allow_from_autoenv:
            word = max(param.opts, key=len).removeprefix("--")
            param.envvar = f"{prefix}_{word}".replace("-", "_").upper()
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            _name_variables(below, f"{prefix}_{name}")


def _want_json(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
    if given:
        each: click.Context | None = ctx
        while each is not None:
            if isinstance(each.obj, Context):
                each.obj = replace(each.obj, json=True)
            each = each.parent


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": _VARIABLES},
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 missing capability, 4 unsupported kernel, 5 program rejected, "
    "6 not found, 7 conflict, 8 reload rolled back, 130 interrupted and undone. "
    "Every option can be given as an environment variable, for example REUSEPORT_TOOL_NETNS or "
    "REUSEPORT_TOOL_ATTACH_POLICY.\n\n"
    "ENDPOINT is PORT, ADDR:PORT or [ADDR6]:PORT, with tcp:// (the default) or udp:// before it. DURATION is 30, 30s, "
    "500ms, 5m, 1h or 1d.",
)
@click.option("--json", "as_json", is_flag=True, envvar=_JSON_VARIABLE, help="Print the result as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show compiler and verifier logs with an error.")
@click.option(
    "--netns",
    metavar="NAME|PATH|pid:N",
    shell_complete=complete.namespaces,
    help="Work in this network namespace.",
)
@click.option(
    "--bpffs",
    type=click.Path(path_type=Path, readable=False),  # whether we may look into it is no matter of usage
    metavar="DIR",
    help="Keep pins in this folder of a bpffs.  [default: /sys/fs/bpf]",
)
@click.version_option(__version__, prog_name="reuseport-tool")
@click.pass_context
def cli(ctx: click.Context, as_json: bool, verbose: bool, netns: str | None, bpffs: Path | None) -> None:
    """Reload servers that listen with SO_REUSEPORT without losing a connection.

    \b
    Examples:
      reuseport-tool doctor
      reuseport-tool attach 8080
      reuseport-tool reload 8080 -- gunicorn --reuse-port -b :8080 app
      reuseport-tool --json status 8080
    """
    ctx.obj = Context(as_json, verbose, bpffs)
    if netns is not None:
        from reuseport_tool.kernel import netns as namespaces

        namespaces.enter(namespaces.resolve(netns))


def main() -> None:
    """Run the command line and exit with the error's code."""
    gc.set_threshold(_GC_THRESHOLD)
    streams.guard()
    streams.keep_room()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except ToolError as error:  # of what was left to write
        code = code or _shown(error, as_json=False, verbose=False)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """As sys.exit(), but the interpreter does not take its modules apart, which is a tenth of a short command."""
    if threading.active_count() > 1:
        sys.exit(code)  # waits for the others
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a command line. Errors are shown on stderr; an unknown one keeps its traceback."""
    try:
        result = cli.main(args=arguments, prog_name="reuseport-tool", standalone_mode=False)
        return result if isinstance(result, int) else 0
    # Before there was a verb to invoke; also an error of the system, of importing it.
    except (click.UsageError, ToolError, click.Abort, OSError, MemoryError) as error:
        return _answer(error, getattr(error, "ctx", None), _words(arguments))


def _answer(error: BaseException, ctx: click.Context | None, words: Sequence[str] = ()) -> int:
    """Show an error as its context or the command line wants it; returns the exit code. Raises what is not known."""
    streams.use_room()
    wanted = ctx.find_object(Context) if ctx is not None else None
    as_json, verbose = (wanted.json, wanted.verbose) if wanted else (False, False)
    if isinstance(error, NoVerb):
        click.echo(error.format_message())
        return UsageError.exit_code
    if wanted is None or isinstance(error, click.UsageError):
        as_json = as_json or _meant_json(ctx.meta.get(_WORDS, words) if ctx is not None else words)
    return _shown(_translated(error), as_json=as_json, verbose=verbose)


def _words(arguments: list[str]) -> list[str]:
    """What is ours: after -- is the server's."""
    return arguments[: arguments.index("--")] if "--" in arguments else list(arguments)


def _meant_json(words: Sequence[str]) -> bool:
    """Whether a command line that could not be parsed asks for JSON: by a word before --, or from outside."""
    given = os.environ.get(_JSON_VARIABLE, "").strip().lower()
    return "--json" in words or given in ("1", "true", "t", "yes", "y", "on")


def _translated(error: BaseException) -> ToolError:
    """What went wrong, as one of our errors. Raises what is not known, with its traceback."""
    if isinstance(error, ToolError):
        return error
    if isinstance(error, click.UsageError):
        return UsageError(error.format_message(), hint=f"see: {error.ctx.command_path} --help" if error.ctx else None)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, PermissionError) and error.filename is not None:
        hint = "run as its owner or as root, or name a bpffs of your own by --bpffs"
        return MissingCapability(f"not permitted: {error.filename}", hint=hint)
    no_room = want_of_room(error)
    if no_room is None:
        raise error
    return no_room


def _hint_of(cause: BaseException | None) -> str | None:
    """What to do where a limit of the system is the reason."""
    no_room = want_of_room(cause)
    return no_room.hint if no_room else None


def _shown(error: ToolError, *, as_json: bool, verbose: bool) -> int:
    from reuseport_tool.cli import show
    from reuseport_tool.cli.show.streams import NotWritten

    if isinstance(error, NotWritten) and error.quiet:
        return error.exit_code
    if error.report is not None and as_json:
        show.outcome(error.report, as_json)
    report = ErrorReport(
        code=error.exit_code,
        message=error.message,
        hint=error.hint or _hint_of(error.__cause__),
        log=error.log if verbose else None,
    )
    show.error(report, as_json)
    return error.exit_code
