"""The filters of sockets and destroy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from reuseport_tool.cli.compat import ParamType
from reuseport_tool.cli.options import duration
from reuseport_tool.cli.types import COOKIE, ENDPOINT, GENERATION, PID, OneOf
from reuseport_tool.models import Protocol, SocketState

F = TypeVar("F", bound=Callable[..., Any])


class StateType(ParamType[SocketState]):
    """A state as the kernel names it, in any case, with - or _."""

    name = "STATE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> SocketState:
        name = str(value).lower().replace("-", "_")
        if name not in tuple(SocketState):
            self.fail(f"no such state: {value}. There are: {', '.join(SocketState)}.", param, ctx)
        return SocketState(name)


_OPTIONS = (
    click.option("--endpoint", type=ENDPOINT, help="Only sockets with this local address and port."),
    click.option("--pid", "pids", type=PID, multiple=True, help="Only sockets that this process holds. Repeatable."),
    click.option("--generation", type=GENERATION, help="Only sockets of this generation of --endpoint."),
    click.option("--state", "states", type=StateType(), multiple=True, help="Only sockets in this state. Repeatable."),
    click.option("--protocol", type=OneOf(Protocol), help="Only sockets of this protocol."),
    click.option("--cookie", "cookies", type=COOKIE, multiple=True, help="Only this socket. Repeatable."),
    duration("--idle", None, "Only TCP sockets without data for at least this long."),
    duration("--older-than", None, "Only TCP sockets that have been half-open or idle for at least this long."),
)


def filters(command: F) -> F:
    """Give a command the filter options, which it receives as the fields of a Filter."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
