"""The entry point: global options, the verbs, and errors turned into exit codes."""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path

import click

from reuseport_tool import __version__
from reuseport_tool.cli import complete
from reuseport_tool.cli.compat import NoVerb, VerbGroup
from reuseport_tool.cli.context import Context, examples
from reuseport_tool.errors import Interrupted, MissingCapability, ToolError, UsageError
from reuseport_tool.models import ErrorReport

_VERBS = {
    "doctor": "doctor",
    "status": "status",
    "attach": "attach",
    "detach": "detach",
    "reload": "reload",
    "map": "maps",
    "migrate-req": "migrate_req",
    "sockets": "sockets",
    "destroy": "destroy",
    "autolowat": "autolowat",
    "check": "check",
    "bench": "bench",
    "metrics": "metrics",
    "completion": "completion",
}


class _Verbs(VerbGroup):
    """Imports a verb's module when it is asked for: most need a part of the libraries only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        module = importlib.import_module(f"reuseport_tool.cli.{_VERBS[name]}")
        command = module.command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "REUSEPORT_TOOL"},
    epilog=examples(
        "reuseport-tool doctor",
        "reuseport-tool attach 8080",
        "reuseport-tool reload 8080 -- gunicorn --reuse-port -b :8080 app",
        "reuseport-tool --json status 8080",
    )
    + "\n\nExit codes: 0 ok, 1 failed, 2 usage, 3 missing capability, 4 unsupported kernel, 5 program rejected, "
    "6 not found, 7 conflict, 8 reload rolled back, 130 interrupted and undone. "
    "Every option can be given as an environment variable, for example REUSEPORT_TOOL_NETNS or "
    "REUSEPORT_TOOL_ATTACH_POLICY.",
)
@click.option("--json", "as_json", is_flag=True, envvar="REUSEPORT_TOOL_JSON", help="Print the result as JSON.")
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
    """Reload servers that listen with SO_REUSEPORT without losing a connection."""
    ctx.obj = Context(as_json, verbose, bpffs)
    if netns is not None:
        from reuseport_tool.kernel import netns as namespaces

        namespaces.enter(namespaces.resolve(netns))


def main() -> None:
    """Run the command line and exit with the error's code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of a command line. Errors are shown on stderr; an unknown one keeps its traceback."""
    as_json = "--json" in arguments
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        result = cli.main(args=arguments, prog_name="reuseport-tool", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except NoVerb as error:
        click.echo(error.format_message())
        return UsageError.exit_code
    except click.UsageError as error:
        hint = f"see: {error.ctx.command_path} --help" if error.ctx else None
        return _failed(UsageError(error.format_message(), hint=hint), as_json, verbose)
    except ToolError as error:
        return _failed(error, as_json, verbose)
    except PermissionError as error:
        if error.filename is None:
            raise
        hint = "run as its owner or as root, or name a bpffs of your own by --bpffs"
        return _failed(MissingCapability(f"not permitted: {error.filename}", hint=hint), as_json, verbose)
    except (click.Abort, KeyboardInterrupt):
        return _failed(Interrupted("interrupted"), as_json, verbose)
    except BrokenPipeError:
        sys.stdout = None  # the reader is gone; nothing to flush
        return 1
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return _failed(ToolError("too many open files", hint="raise the limit: ulimit -n"), as_json, verbose)


def _failed(error: ToolError, as_json: bool, verbose: bool) -> int:
    from reuseport_tool.cli import show

    if error.report is not None and as_json:
        show.result(error.report, as_json)
    report = ErrorReport(
        code=error.exit_code, message=error.message, hint=error.hint, log=error.log if verbose else None
    )
    show.error(report, as_json)
    return error.exit_code
