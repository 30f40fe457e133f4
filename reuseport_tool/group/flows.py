"""The UDP flows that the programs of our groups recorded."""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.errors import NotFound
from reuseport_tool.group import places
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs
from reuseport_tool.kernel.flow_map import RawFlow
from reuseport_tool.models import Endpoint, Flow, FlowMode, Flows, FlowTable


def table(opened: State) -> FlowTable | None:
    """How full the map of a group is; None where it keeps no flows."""
    counters = opened.flows.counters()
    if counters is None:
        return None
    return FlowTable(
        mode=opened.flows.mode,
        flows=sum(1 for _ in opened.flows.recorded()),
        capacity=opened.flows.capacity,
        connection_ids=opened.flows.connection_ids(),
        counters=counters,
    )


def list_flows(endpoint: Endpoint, root: Path | None, generation: int | None, limit: int) -> Flows:
    """The flows of the groups that an endpoint means, those seen last first.

    Args:
        generation: of this one only; None for all.
        limit: at most so many.

    Raises:
        NotFound: no such group keeps flows.
    """
    folder = bpffs.find(root)
    found: list[tuple[float, Flow]] = []
    keeps = False
    for group in places.pinned(folder, endpoint):
        with State.open(places.group_folder(folder, group)) as opened:
            keeps |= opened.flows.mode is not FlowMode.NONE
            found += [
                (raw.idle_s, _flow(group, raw))
                for raw in opened.flows.recorded()
                if generation is None or raw.is_of(generation)
            ]
    if not keeps:
        raise NotFound(f"no group of {endpoint} keeps flows", hint=f"attach {endpoint} --flows address")
    return Flows(flows=tuple(flow for _, flow in sorted(found, key=lambda entry: entry[0])[:limit]))


def _flow(group: Endpoint, raw: RawFlow) -> Flow:
    source, port, destination = raw.addresses(is_ipv6=group.is_ipv6)
    return Flow(
        endpoint=str(group),
        source=f"[{source}]:{port}" if ":" in source else f"{source}:{port}",
        destination=destination,
        generation=raw.generation,
        slot=raw.slot,
        idle_s=round(raw.idle_s, 3),
    )
