"""Write the state down, and tell the operator."""

from __future__ import annotations

import dataclasses
from typing import Any

from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def save(state: ReloadState, world: World, **changes: Any) -> ReloadState:
    """The state with these changes, after it was written to the journal.

    After the point of no return the run goes on without a journal that cannot be written.
    """
    changes |= {"sequence": state.sequence + 1, "pid": world.processes.own_pid(), "queues": world.queues.series()}
    saved = dataclasses.replace(state, **changes)
    try:
        world.journal.write(saved)
    except Exception:
        if not state.is_past:
            raise
    return saved


def since_begin_s(state: ReloadState, world: World) -> float:
    """Seconds since the reload began, also where another run began it."""
    return round(max(0.0, world.clock.wall_s() - state.begun_at), 4)


def warn(state: ReloadState, world: World, text: str) -> ReloadState:
    """Warn once: now, and in the report."""
    if text in state.warnings:
        return state
    world.tell.warn(text)
    return save(state, world, warnings=(*state.warnings, text))
