"""switch: the commit."""

from __future__ import annotations

import dataclasses

from reuseport_tool.models import FlowMode
from reuseport_tool.reload import ways
from reuseport_tool.reload.saving import save, warn
from reuseport_tool.reload.state import GroupState, ReloadState, WayName
from reuseport_tool.reload.world import World


def switch(state: ReloadState, world: World) -> ReloadState:
    """From here new connections reach the new listeners, in one group after the other.

    All are ready before the first is switched: what the new server accepts would be reset by a roll-back.
    """
    for group in state.kept:
        ways.of(group).be_ready(state, group, world)
    longest_us = state.switch_us
    for group in state.kept:
        if group.way is WayName.DATAGRAMS:
            state = _note(state, group, world)
        took_us = ways.of(group).switch(state, group, world)
        if took_us is not None:
            longest_us = max(longest_us or 0.0, round(took_us, 1))
    return save(state, world, switch_us=longest_us)


def _note(state: ReloadState, group: GroupState, world: World) -> ReloadState:
    """Write down, before it gets any, that the new side may have datagrams to answer."""
    if group.counters_at_switch is not None:  # a killed run was here, and may have switched
        return state
    if group.flows is not FlowMode.NONE:
        # One that is evicted between here and the drain is lost as well.
        world.datagrams.keep_flows(group.endpoint, world.clock.now_s())
        state = _warn_without_ids(state, group, world)
    counters = world.pins.counters(group.endpoint)
    return save(state.with_group(dataclasses.replace(group, counters_at_switch=counters)), world)


def _warn_without_ids(state: ReloadState, group: GroupState, world: World) -> ReloadState:
    kept = world.datagrams.kept_flows(group.endpoint)
    if kept is None or not kept.flows or world.datagrams.connection_ids(group.endpoint) != 0:
        return state
    text = "no connection ID is known, because no handshake was seen since the attachment: a connection whose client's"
    return warn(state, world, f"{group.endpoint}: {text} address changes is lost")
