"""What maps a group has, by their names, and new ones."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from reuseport_tool.errors import Conflict
from reuseport_tool.group import choice, places
from reuseport_tool.kernel import bpf, flow_map, quic
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Counters, FlowCounters, FlowMode

GENERATIONS = 16
CAPACITY_LEAST = 512
"""Slots of a generation: at least so many, and twice as many as it begins with, so that others can join."""
COUNTERS = tuple(Counters.__dataclass_fields__)
FLOW_COUNTERS = tuple(FlowCounters.__dataclass_fields__)
_CURSORS = 3

SHAPES = {
    "choice": (bpf.MapType.ARRAY, 4, choice.ELEMENTS),
    "members": (bpf.MapType.ARRAY, 4, GENERATIONS),
    "generations": (bpf.MapType.ARRAY_OF_MAPS, 4, GENERATIONS),
    "counters": (bpf.MapType.PERCPU_ARRAY, 8, len(COUNTERS)),
    "cursors": (bpf.MapType.ARRAY, 4, _CURSORS),
}
"""By name: type, size of a value in bytes, number of elements."""
FLOW_NAMES: Mapping[FlowMode, tuple[str, ...]] = {
    FlowMode.NONE: (),
    FlowMode.ADDRESS: ("flows", "flow_counters"),
    FlowMode.QUIC: ("flows", "flow_counters", "connections", "quic"),
}
"""Those of a group that keeps flows, by what it keeps."""
ALL_FLOW_NAMES = FLOW_NAMES[FlowMode.QUIC]
EGRESS = "quic_egress"
"""The pin of the link by which the answers of QUIC servers are read."""
DEFINES = {"GENERATIONS": GENERATIONS}
"""What the policies are compiled with (bpf/reuseport.h)."""
MAPS = tuple(f"{name.upper()}_FD" for name in SHAPES)
"""What stands for the maps in them; link() has the descriptors."""
FLOW_MAPS = {mode: tuple(f"{name.upper()}_FD" for name in names) for mode, names in FLOW_NAMES.items()}
"""What stands for the maps of a group that keeps flows, after MAPS."""


def shape(entry: bpf.Map) -> tuple[int, int, int]:
    return entry.type, entry.value_size, entry.max_entries


def link(maps: dict[str, bpf.Map]) -> dict[str, int]:
    """The descriptors of a group's maps by MAPS and, where it keeps flows, FLOW_MAPS."""
    return {f"{name.upper()}_FD": entry.fd for name, entry in maps.items()}


def new_maps(stack: ExitStack, flows: FlowMode = FlowMode.NONE, flow_entries: int = 0) -> dict[str, bpf.Map]:
    """Fresh maps without a generation; `stack` closes them unless its caller pops it."""
    with new_sockarray() as inner:
        maps = {
            name: stack.enter_context(
                bpf.Map.create(
                    kind,
                    name,
                    value_size=size,
                    max_entries=entries,
                    inner=inner if kind is bpf.MapType.ARRAY_OF_MAPS else None,
                )
            )
            for name, (kind, size, entries) in SHAPES.items()
        }
    return maps | new_flow_maps(stack, flows, flow_entries)


def new_flow_maps(stack: ExitStack, mode: FlowMode, entries: int) -> dict[str, bpf.Map]:
    """Empty maps of flows; `stack` closes them unless its caller pops it. `quic` does not know the group's port yet."""
    makers = {
        "flows": lambda: flow_map.create(entries),
        "flow_counters": lambda: bpf.Map.create(
            bpf.MapType.PERCPU_ARRAY, "flow_counters", value_size=8, max_entries=len(FLOW_COUNTERS)
        ),
        "connections": lambda: quic.create_connections(entries),
        "quic": lambda: quic.create_lengths(GENERATIONS),
    }
    return {name: stack.enter_context(makers[name]()) for name in FLOW_NAMES[mode]}


def flow_mode(names: Collection[str]) -> FlowMode:
    """What a group keeps that has these maps."""
    return next(mode for mode in reversed(FlowMode) if set(FLOW_NAMES[mode]) <= set(names))


def new_sockarray(listeners: int = 0) -> bpf.Map:
    """A generation's map, for so many listeners."""
    capacity = max(CAPACITY_LEAST, 2 * listeners)
    return bpf.Map.create(bpf.MapType.REUSEPORT_SOCKARRAY, "generation", value_size=8, max_entries=capacity)


def sum_of_cpus(values: bytes) -> int:
    """The sum of a value of a per-CPU map."""
    return sum(int.from_bytes(values[at : at + 8], sys.byteorder) for at in range(0, len(values), 8))


def damaged(folder: Place) -> Conflict:
    """The error of pins that are missing, or are not those that this tool makes."""
    group = places.endpoint_of(folder.name) or "ENDPOINT"
    return Conflict(
        f"the pins in {folder / places.STATE} are damaged",
        hint=f"'attach {group} --repair' restores them, 'detach {group}' removes program and pins",
    )
