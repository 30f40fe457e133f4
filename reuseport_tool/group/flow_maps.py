"""The maps of a UDP group that keeps flows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from reuseport_tool.group import layout, places
from reuseport_tool.kernel import bpf, bpffs, flow_map
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import FlowCounters, FlowMode


class FlowMaps:
    """Those among the open maps of a group, if it has them."""

    def __init__(self, folder: Place, maps: dict[str, bpf.Map]) -> None:
        self._folder = folder
        self._maps = maps

    @property
    def mode(self) -> FlowMode:
        """Whether the group keeps flows."""
        return FlowMode.ADDRESS if all(name in self._maps for name in layout.FLOW_NAMES) else FlowMode.NONE

    @property
    def capacity(self) -> int:
        """How many flows can be recorded; 0 where none are."""
        return self._maps["flows"].max_entries if self.mode is not FlowMode.NONE else 0

    def recorded(self) -> Iterator[flow_map.RawFlow]:
        """The recorded flows; none where the group keeps none."""
        if self.mode is not FlowMode.NONE:
            yield from flow_map.flows(self._maps["flows"])

    def counters(self) -> FlowCounters | None:
        """Sums over the CPUs; None where the group keeps no flows."""
        if self.mode is FlowMode.NONE:
            return None
        counters = self._maps["flow_counters"]
        return FlowCounters(
            **{name: layout.sum_of_cpus(counters.lookup(index)) for index, name in enumerate(layout.FLOW_COUNTERS)}
        )

    def add(self, entries: int) -> None:
        """Make and pin what a program that keeps flows needs."""
        with ExitStack() as stack:
            made = layout.new_flow_maps(stack, entries)
            for name, entry in made.items():
                pin = self._folder / places.STATE / name
                pin.unlink()
                bpffs.pin(entry, pin)
            stack.pop_all()
        self._maps |= made

    def remove(self) -> None:
        """Forget the flows, after the program that kept them."""
        for name in layout.FLOW_NAMES:
            if name in self._maps:
                self._maps.pop(name).close()
            (self._folder / places.STATE / name).unlink()
