"""UDP flows: datagrams that stay together during a reload."""

from __future__ import annotations

import enum

from reuseport_tool.record import record


class FlowMode(enum.StrEnum):
    """What a UDP group keeps together during a reload."""

    NONE = "none"
    ADDRESS = "address"
    QUIC = "quic"


@record
class FlowCounters:
    """What the program counted of UDP flows since the group keeps them, over all CPUs."""

    new: int
    """Flows that it recorded."""
    kept: int
    """Datagrams that it gave to the socket that their flow belongs to."""
    gone: int
    """Datagrams of flows whose socket was closed; each is recorded anew."""
    learnt: int
    """Connection IDs of QUIC that it learnt."""
    moved: int
    """How often a QUIC connection went on from another address."""
    older: int
    """Datagrams of QUIC connections that it did not know, which it gave to the generation before the working one."""


@record
class FlowTable:
    """The flows of a UDP group that keeps them."""

    mode: str
    """`address`: datagrams of one address and port stay with one socket; `quic`: so do those of one connection."""
    flows: int
    """How many are recorded, also those that have ended without a word."""
    capacity: int
    """How many fit. When more than half of them are recorded the kernel may forget flows that are alive: attach with
    more `--flow-entries`."""
    counters: FlowCounters
    """What the program counted."""
    connection_ids: int | None = None
    """Connection IDs of QUIC that are known, of which as many fit; null in another mode."""


@record
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


@record
class Flows:
    """What `flows` found, those seen last first."""

    flows: tuple[Flow, ...]
    """The flows."""
