"""What became of a reload, kept in the folders of its groups for `status` and `metrics`."""

from __future__ import annotations

import contextlib

from reuseport_tool.models import Endpoint, LastReload, Reload
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.world import World


def keep(done: Reload, state: ReloadState, world: World, failure: str | None = None) -> None:
    """Nothing that fails here changes the reload. A group that was given up keeps no record."""
    groups = state.kept if done.result == "reloaded" else state.groups
    for group in groups:
        with contextlib.suppress(Exception):
            world.journal.leave(group.endpoint, of_group(done, group.endpoint, world.clock.wall_s(), failure))


def of_group(done: Reload, group: Endpoint, ended_at: float, failure: str | None) -> LastReload:
    """The record of one group."""
    datagrams = {entry.endpoint: entry for entry in done.datagrams}.get(str(group))
    if datagrams is not None:
        moved, lost = None, datagrams.lost
    else:
        moved, lost = done.migrated.moved, done.resets.lost if done.resets is not None else None
    return LastReload(
        result="failed" if failure and done.result == "reloaded" else done.result,
        ended_at=round(ended_at, 3),
        duration_s=done.duration_s,
        moved=moved,
        lost=lost,
        failure=failure,
    )
