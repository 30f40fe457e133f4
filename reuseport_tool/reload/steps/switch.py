"""switch: the commit."""

from __future__ import annotations

import dataclasses

from reuseport_tool.models import FlowMode
from reuseport_tool.reload import ways
from reuseport_tool.reload.saving import save
from reuseport_tool.reload.state import ReloadState, WayName
from reuseport_tool.reload.world import World


def switch(state: ReloadState, world: World) -> ReloadState:
    """From here new connections reach the new listeners, in one group after the other."""
    longest_us = state.switch_us
    for group in state.kept:
        if group.flows is not FlowMode.NONE:
            # One that is evicted between here and the drain is lost as well.
            world.datagrams.keep_flows(group.endpoint, world.clock.now_s())
        took_us = ways.of(group).switch(state, group, world)
        if took_us is not None:
            longest_us = max(longest_us or 0.0, round(took_us, 1))
        if group.way is WayName.DATAGRAMS and group.counters_at_switch is None:
            counters = world.pins.counters(group.endpoint)
            state = state.with_group(dataclasses.replace(group, counters_at_switch=counters))
    return save(state, world, switch_us=longest_us)
