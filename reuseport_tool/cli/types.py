"""The types of every option and argument, each once: what a value may look like, and its bounds."""

from __future__ import annotations

import enum
import re
import signal
from typing import Any

import click
from click.shell_completion import CompletionItem

from reuseport_tool.cli import complete
from reuseport_tool.cli.compat import Choice, ParamType
from reuseport_tool.errors import UsageError
from reuseport_tool.models import Endpoint, parse_endpoint

_UNITS_S = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S = 366 * 86400.0
_PORT_MAX = 65535


class Number(ParamType[int]):
    """A whole number between bounds, which an error names. The help has room for what it is a number of."""

    def __init__(self, name: str, least: int, most: int) -> None:
        self.name = name
        self._least = least
        self._most = most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not self._least <= int(text) <= self._most:
            self.fail(f"{value!r} is not a whole number from {self._least} to {self._most}", param, ctx)
        return int(text)


PID = Number("PID", 1, 1 << 22)
"""Up to PID_MAX_LIMIT of include/linux/threads.h."""
COOKIE = Number("COOKIE", 1, (1 << 64) - 1)
GENERATION = Number("N", 1, (1 << 31) - 1)
SLOT = Number("SLOT", 0, (1 << 16) - 1)
COUNT = Number("N", 1, 1 << 20)


class EndpointType(ParamType[Endpoint]):
    """PORT, ADDR:PORT or [ADDR6]:PORT."""

    name = "ENDPOINT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        return value if isinstance(value, Endpoint) else parse_endpoint(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete.ports(ctx, incomplete)


class OneOf(Choice[Any]):
    """A member of an enum, by its value.

    Args:
        members: the enum.
        none: a word that stands for None.
    """

    def __init__(self, members: type[enum.StrEnum], *, none: str | None = None) -> None:
        self._members = members
        super().__init__([*([none] if none else []), *(member.value for member in members)])

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> enum.StrEnum | None:
        if isinstance(value, self._members):
            return value
        word = super().convert(value, param, ctx)
        return self._members(word) if word in tuple(self._members) else None


class DurationType(ParamType[float]):
    """A duration: 30, 30s, 500ms, 2m, 1h or 1d, in seconds. Without a unit it is in seconds."""

    name = "DURATION"

    def __init__(self, least_s: float = 0.0) -> None:
        self._least_s = least_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?|\.\d{1,15})\s*(ms|s|m|h|d|)", str(value).strip(), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a duration; for example 30, 30s, 500ms, 2m or 1h", param, ctx)
        duration_s = float(match[1]) * _UNITS_S[match[2]]
        if not self._least_s <= duration_s <= _LONGEST_S:
            self.fail(f"{value!r} is not between {self._least_s:g}s and {_LONGEST_S / 86400:.0f}d", param, ctx)
        return duration_s


class SignalType(ParamType[signal.Signals]):
    """TERM, SIGTERM or 15."""

    name = "SIGNAL"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> signal.Signals:
        text = str(value).upper()
        try:
            return signal.Signals(int(text)) if text.isdigit() else signal.Signals[f"SIG{text.removeprefix('SIG')}"]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not a signal", param, ctx)


class SharesType(ParamType[tuple[float, ...]]):
    """5,25,100"""

    name = "PERCENT,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(re.fullmatch(r"\d{1,3}(\.\d{1,9})?", word.strip(), re.ASCII) for word in words):
            self.fail(f"{value!r} are not shares in percent; for example 5,25,100", param, ctx)
        return tuple(map(float, words))


class PortsType(ParamType[tuple[int, ...]]):
    """443,8080-8090"""

    name = "LIST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else parse_ports(str(value))


def parse_ports(text: str) -> tuple[int, ...]:
    """Read `80,8080-8090`, rising and without repetition. Raises UsageError."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip(), re.ASCII)
        if match is None:
            raise UsageError(f"not a port: {part!r}", hint="write --ports 443,8080-8090")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 < first <= _PORT_MAX or not 0 < last <= _PORT_MAX:
            raise UsageError(f"not ports: {part!r}", hint=f"they are from 1 to {_PORT_MAX}")
        if last < first:
            raise UsageError(f"not a range of ports: {part!r}", hint=f"write the lower one first: {last}-{first}")
        found.update(range(first, last + 1))
    if not found:  # an empty variable, perhaps: without any port the programs follow the sockets that opt in
        raise UsageError(f"no port: {text!r}", hint="write --ports 443,8080-8090, or omit --ports")
    return tuple(sorted(found))


ENDPOINT = EndpointType()
DURATION = DurationType()
PORTS = PortsType()
