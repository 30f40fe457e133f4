"""drain: wait until old listeners hold nothing that would be lost when they close."""

from __future__ import annotations

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.models import Queues, Strategy
from reuseport_tool.reload import sides
from reuseport_tool.reload.state import ReloadState, WayName
from reuseport_tool.reload.steps import quiet
from reuseport_tool.reload.world import World

_EMPTY = Queues(accept_queue=0, half_open=0)


def is_needed(state: ReloadState) -> bool:
    """All UDP groups; with the strategy drain all groups, else those that the new side gives up."""
    return state.strategy is Strategy.DRAIN or len(state.kept) < len(state.groups) or bool(quiet.groups(state))


def drain(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when they still hold connections after the time, Unsupported where that cannot be seen."""
    state = _drain_connections(state, world)
    return quiet.become_quiet(state, world) if quiet.groups(state) else state


def _drain_connections(state: ReloadState, world: World) -> ReloadState:
    tcp = [group for group in state.groups if group.way is not WayName.DATAGRAMS]
    groups = [group for group in tcp if group.dropped or state.strategy is Strategy.DRAIN]
    cookies = {cookie for group in groups for cookie in group.old}
    if not cookies:
        return state
    if world.listeners.kernel(cookies) is None:
        raise Unsupported("half-open connections cannot be seen here", hint="draining needs BTF and Linux 5.9")
    timeout_s = state.plan.queue_drain_timeout_s
    left = sides.waiting(state, world, cookies)
    if left != _EMPTY:
        world.tell.note(f"the old listeners still hold {_held(left)}; waiting up to {timeout_s:g} s")
    if not world.clock.wait(lambda: sides.waiting(state, world, cookies) == _EMPTY, timeout_s):
        left = sides.waiting(state, world, cookies)
        raise ToolError(
            f"the old listeners still hold {_held(left)} after {timeout_s:g} s",
            hint="allow more time with --drain-timeout; SYN+ACK retries take 63 s by default",
        )
    return state


def _held(left: Queues) -> str:
    return f"{left.accept_queue} queued and {left.half_open} half-open connections"
