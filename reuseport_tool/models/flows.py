"""UDP flows: datagrams that stay together during a reload."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FlowMode(enum.StrEnum):
    """What a UDP group keeps together during a reload."""

    NONE = "none"
    ADDRESS = "address"


@dataclass(frozen=True, kw_only=True)
class FlowCounters:
    """What the program counted of UDP flows since the group keeps them, over all CPUs."""

    new: int = 0
    """Flows that it recorded."""
    kept: int = 0
    """Datagrams that it gave to the socket that their flow belongs to."""
    gone: int = 0
    """Datagrams of flows whose socket was closed; each is recorded anew."""


@dataclass(frozen=True, kw_only=True)
class FlowTable:
    """The flows of a UDP group that keeps them."""

    mode: str
    """`address`: datagrams of one address and port stay with one socket."""
    flows: int
    """How many are recorded, also those that have ended without a word."""
    capacity: int
    """How many fit. When more than half of them are recorded the kernel may forget flows that are alive: attach with
    more `--flow-entries`."""
    counters: FlowCounters
    """What the program counted."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A recorded UDP flow."""

    endpoint: str
    """The group."""
    source: str
    """Address and port that the datagrams come from."""
    destination: str
    """Address that they are sent to."""
    generation: int
    """The generation that it belongs to."""
    slot: int
    """The slot there."""
    idle_s: float
    """Seconds since the last datagram, to a second."""


@dataclass(frozen=True, kw_only=True)
class Flows:
    """What `flows` found, those seen last first."""

    flows: tuple[Flow, ...]
    """The flows."""
