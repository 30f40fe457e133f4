"""doctor"""

from __future__ import annotations

import click

from reuseport_tool.check import doctor
from reuseport_tool.cli import show
from reuseport_tool.cli.context import Context, pass_context
from reuseport_tool.errors import MissingCapability, Unsupported


@click.command("doctor")
@pass_context
def command(ctx: Context) -> int:
    """Try every feature that the tool uses, in a throw-away network namespace.

    It uses each feature for real and never looks at the kernel's version. The answer is yes, no, or could not
    tell; without root, the last one names the missing capability. Exits with 0 if the strategy `migrate` works
    here, with 4 if not, and with 3 if that could not be tried.

    \b
    Examples:
      reuseport-tool doctor
      reuseport-tool --json doctor
      sudo -u deploy reuseport-tool doctor
    """
    report = doctor.doctor(ctx.bpffs)
    show.result(report, ctx.json)
    absent = any(feature.available is False for feature in report.features if feature.name in report.missing)
    return 0 if report.ok else Unsupported.exit_code if absent else MissingCapability.exit_code
