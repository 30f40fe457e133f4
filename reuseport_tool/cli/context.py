"""What every verb gets: the global options, and how to show a result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from reuseport_tool.cli import complete
from reuseport_tool.cli.compat import ParamType
from reuseport_tool.models import Endpoint, parse_endpoint


@dataclass(frozen=True)
class Context:
    json: bool
    verbose: bool
    bpffs: Path | None


pass_context = click.make_pass_decorator(Context)


class EndpointType(ParamType[Endpoint]):
    """PORT, :PORT, ADDR:PORT or [ADDR6]:PORT."""

    name = "ENDPOINT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        return value if isinstance(value, Endpoint) else parse_endpoint(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete.ports(ctx, incomplete)


class SecondsType(ParamType[float]):
    """A duration: 30, 30s, 500ms, 2m or 1h. Without a unit it is in seconds."""

    name = "SECONDS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a duration; for example 30, 30s, 500ms, 2m or 1h", param, ctx)
        return float(match[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


ENDPOINT = EndpointType()
SECONDS = SecondsType()


def examples(*lines: str) -> str:
    """An epilog of commands that click does not re-wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
