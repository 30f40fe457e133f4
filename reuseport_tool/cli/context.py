"""What every verb gets: the global options, and how to show a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from reuseport_tool.models import Endpoint, parse_endpoint


@dataclass(frozen=True)
class Context:
    json: bool
    verbose: bool
    bpffs: Path | None


pass_context = click.make_pass_decorator(Context)


class EndpointType(click.ParamType[Endpoint]):
    """PORT, ADDR:PORT or [ADDR6]:PORT."""

    name = "ENDPOINT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        return value if isinstance(value, Endpoint) else parse_endpoint(str(value))


ENDPOINT = EndpointType()


def examples(*lines: str) -> str:
    """An epilog of commands that click does not re-wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
