"""The maps of a UDP group that keeps flows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from reuseport_tool.group import layout, places
from reuseport_tool.kernel import bpf, bpffs, flow_map, quic
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import FlowCounters, FlowMode


def read_answers(maps: Mapping[str, bpf.Map], group: Place, folder: Place) -> None:
    """Where the maps are of QUIC, begin to read what the servers answer, until the pin in `folder` goes.

    Args:
        group: the folder of the group, whose name has the port.

    Raises:
        Unsupported, MissingCapability: see quic.read_answers().
    """
    if layout.flow_mode(maps) is not FlowMode.QUIC:
        return
    endpoint = places.endpoint_of(group.name)
    assert endpoint is not None
    quic.set_port(maps["quic"], layout.GENERATIONS, endpoint.port)
    with quic.read_answers(maps, layout.GENERATIONS) as link:
        (folder / layout.EGRESS).unlink()
        bpffs.pin(link, folder / layout.EGRESS)


class FlowMaps:
    """Those among the open maps of a group, if it has them."""

    def __init__(self, folder: Place, maps: dict[str, bpf.Map]) -> None:
        self._folder = folder
        self._maps = maps

    def take(self, program: bpf.Program) -> None:
        """Open those that are pinned and that the program uses: a killed run can leave some that it does not use."""
        used = program.map_ids()
        for name in layout.ALL_FLOW_NAMES:
            if name in self._maps and self._maps[name].id not in used:
                self._maps.pop(name).close()
            with contextlib.suppress(FileNotFoundError):
                entry = bpffs.open_map(self._folder / places.STATE / name)
                if name in self._maps or entry.id not in used:
                    entry.close()
                else:
                    self._maps[name] = entry

    @property
    def mode(self) -> FlowMode:
        """What the group keeps."""
        return layout.flow_mode(self._maps)

    @property
    def capacity(self) -> int:
        """How many flows can be recorded, and as many connection IDs; 0 where none are."""
        return self._maps["flows"].max_entries if self.mode is not FlowMode.NONE else 0

    def recorded(self) -> Iterator[flow_map.RawFlow]:
        """The recorded flows; none where the group keeps none."""
        if self.mode is not FlowMode.NONE:
            yield from flow_map.flows(self._maps["flows"])

    def connection_ids(self) -> int | None:
        """How many connection IDs are known; None where the group is not one of QUIC."""
        return flow_map.count(self._maps["connections"]) if self.mode is FlowMode.QUIC else None

    def counters(self) -> FlowCounters | None:
        """Sums over the CPUs; None where the group keeps no flows. Maps of an older version have fewer of them."""
        if self.mode is FlowMode.NONE:
            return None
        counters = self._maps["flow_counters"]
        names = layout.FLOW_COUNTERS[: counters.max_entries]
        return FlowCounters(**{name: layout.sum_of_cpus(counters.lookup(index)) for index, name in enumerate(names)})

    def add(self, mode: FlowMode, entries: int) -> None:
        """Make and pin what a program of this mode needs and is not there. Raises as read_answers()."""
        folder = self._folder / places.STATE
        with ExitStack() as stack:
            made = layout.new_flow_maps(stack, mode, entries)
            for name in made.keys() & self._maps.keys():
                made.pop(name).close()
            read_answers({**self._maps, **made}, self._folder, folder)
            for name, entry in made.items():
                (folder / name).unlink()
                bpffs.pin(entry, folder / name)
            stack.pop_all()
        self._maps |= made

    def remove(self, mode: FlowMode) -> None:
        """Forget what a program of this mode does not need, after the program that did."""
        unused = set(layout.ALL_FLOW_NAMES) - set(layout.FLOW_NAMES[mode])
        for name in unused:
            if name in self._maps:
                self._maps.pop(name).close()
        for name in (*unused, *([layout.EGRESS] if mode is not FlowMode.QUIC else [])):
            (self._folder / places.STATE / name).unlink()
