"""metrics [ENDPOINT]"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import click

from reuseport_tool import names
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.cli.options import file
from reuseport_tool.cli.show import metrics
from reuseport_tool.cli.types import ENDPOINT
from reuseport_tool.errors import ToolError, UsageError
from reuseport_tool.group.status import Observer
from reuseport_tool.kernel import mib
from reuseport_tool.models import Endpoint

_READABLE = 0o644  # node_exporter is another user


@click.command("metrics")
@click.argument("endpoint", type=ENDPOINT, required=False)
@file("--textfile", "Write this file atomically, for the textfile collector of node_exporter.", metavar="FILE.prom")
@pass_context
def command(ctx: Context, endpoint: Endpoint | None, textfile: Path | None) -> None:
    """Print the state of all groups, or of those that ENDPOINT means, in the text format of Prometheus.

    Counters named reuseport_netstat_… are the kernel's counters of the network namespace. The units
    reuseport-tool-metrics.timer and .service write a textfile every 15 seconds.

    \b
    Examples:
      reuseport-tool metrics
      reuseport-tool metrics \\
          --textfile /var/lib/prometheus/node-exporter/reuseport.prom
    """
    with Observer(endpoint, ctx.bpffs) as observer:
        text = metrics.exposition(names.printable(observer.read()), mib.read())
    if textfile is None:
        click.echo(text.decode(), nl=False)
    else:
        _replace(textfile, text)


def _replace(file: Path, text: bytes) -> None:
    """A reader sees the old file or the new one, never a part. Raises ToolError, also for what is no plain file."""
    try:
        _rename_into(file, text)
    except FileNotFoundError as error:
        hint = "it must be the folder of node_exporter's --collector.textfile.directory; make it first"
        raise ToolError(f"{file} was not written: there is no folder {file.parent}", hint=hint) from error
    except OSError as error:
        owner = f"run as the owner of {file.parent}" if isinstance(error, PermissionError) else None
        raise ToolError(f"{file} was not written: {error.strerror}", hint=owner) from error


def _rename_into(file: Path, text: bytes) -> None:
    if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
        raise UsageError(
            f"not a plain file: {file}",
            hint="the file is replaced as a whole; without --textfile the metrics go to stdout",
        )
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as written:
        try:
            written.write(text)
            os.fchmod(written.fileno(), _READABLE)
            written.close()
            os.replace(written.name, file)
        except BaseException:
            os.unlink(written.name)
            raise
