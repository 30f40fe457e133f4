"""What a kernel in memory consists of: sockets, BPF maps and programs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from reuseport_tool.models import Endpoint, parse_endpoint

WEB = parse_endpoint("127.0.0.1:80")
DNS = parse_endpoint("udp://127.0.0.1:53")
CPUS = 2


@dataclass(kw_only=True)
class Sock:
    """A bound socket. `part` tells parts of a group that has split."""

    endpoint: Endpoint
    cookie: int
    pid: int
    fd: int
    reuseport: bool = True
    mptcp: bool = False
    queue: int = 0
    part: int = 0


@dataclass(kw_only=True)
class Object:
    """A map, with its `values`, or a program, with its `maps`."""

    id: int
    type: int
    name: str
    key_size: int = 4
    value_size: int = 4
    max_entries: int = 1
    values: dict[Any, bytes] = field(default_factory=dict)
    maps: tuple[int, ...] = ()
    tag: str = ""
    uid: int = field(default_factory=os.geteuid)


def packed(cookie: int) -> bytes:
    return cookie.to_bytes(8, sys.byteorder)
