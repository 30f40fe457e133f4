"""What a world in memory consists of: processes, sockets, and what is pinned of a group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.models import Endpoint, Protocol, parse_endpoint

SHELL, TOOL, OLD = 40, 50, 100
OURS, FOREIGN = 7, 66
OPTIONS = ListenerOptions(**dict.fromkeys((each.name for each in dataclasses.fields(ListenerOptions)), 0))  # type: ignore[arg-type]


def group(text: str) -> Endpoint:
    return parse_endpoint(text)


WEB = group("127.0.0.1:80")


class Killed(BaseException):
    """The tool was killed: from here on it changes nothing any more."""


@dataclass
class Proc:
    """A process. `on_term` says what a SIGTERM does: end, ignore, or a function."""

    pid: int
    parent: int
    name: str = "server"
    executable: str = "/server"
    unit: str | None = None
    start: int = 1
    mark: int = 0
    on_term: Callable[[], None] | str = "end"


@dataclass
class Sock:
    """A listener. `accepts` says that its holders empty its queue at once."""

    endpoint: Endpoint
    cookie: int
    holders: set[int]
    queue: int = 0
    backlog: int = 128
    half_open: int = 0
    accepts: bool = True
    reuseport: bool = True
    options: ListenerOptions = OPTIONS


@dataclass
class Pin:
    """What is pinned of a group."""

    working: int = 1
    generations: dict[int, set[int]] = field(default_factory=dict)
    canary: tuple[int, float] = (0, 0.0)
    migrated: int = 0
    selected: int = 0
    to_canary: int = 0


def is_udp(sock: Sock) -> bool:
    return sock.endpoint.protocol is Protocol.UDP
