"""The maps of a group: one REUSEPORT_SOCKARRAY for each generation."""

from __future__ import annotations

from typing import Literal

from reuseport_tool.record import record


@record
class Slot:
    """An occupied slot of a map."""

    slot: int
    """Its index."""
    cookie: int
    """The listener in it."""


@record
class GenerationMap:
    """The map of one generation of a group."""

    endpoint: str
    """The group."""
    generation: int
    """Number of the generation."""
    working: bool
    """Whether new connections go there."""
    members: int
    """How many slots the program looks at."""
    capacity: int
    """How many slots the map has."""
    slots: tuple[Slot, ...]
    """The occupied slots."""


@record
class Maps:
    """What `map list` and `map show` found."""

    maps: tuple[GenerationMap, ...]
    """One entry for each generation of each group."""
    damaged: tuple[str, ...] = ()
    """What is wrong with the pins of groups that are not listed."""


@record
class MapChange:
    """One change that a map verb made."""

    endpoint: str
    """The group."""
    change: Literal["added", "removed", "switched"]
    """What was done."""
    generation: int
    """Number of the generation."""
    slot: int | None = None
    """The slot; null for `switched`."""
    cookie: int | None = None
    """The listener; null for `switched`."""


@record
class MapChanges:
    """What `map add`, `map remove` and `map switch` did."""

    changes: tuple[MapChange, ...]
    """The changes, in order."""
