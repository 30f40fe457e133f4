"""canary: the new generation is asked, and gets a growing share of the new connections."""

from __future__ import annotations

from reuseport_tool.errors import ToolError
from reuseport_tool.models import CanaryStep, Strategy
from reuseport_tool.reload import sides, ways
from reuseport_tool.reload.saving import save
from reuseport_tool.reload.state import ReloadState
from reuseport_tool.reload.steps.health import ask_new, check_counters
from reuseport_tool.reload.world import World


def is_asked_for(state: ReloadState) -> bool:
    """Whether the new generation is tried while the old one works on."""
    if state.strategy is Strategy.SYSCTL or state.plan.run is not None:
        return False
    return bool(state.plan.canary or state.plan.health_url)


def canary(state: ReloadState, world: World) -> ReloadState:
    """Raises ToolError when the new generation is not well. A resumed one goes on at the share that it had."""
    if not is_asked_for(state) or any(ways.of(group).is_switched(group, world) for group in state.kept):
        return state
    reached = max(_share(state, world))
    if not reached:
        _give(state, world, 0)
        ask_new(state, world, steered=True)
    for percent in state.plan.canary:
        if reached <= percent < 100:
            state = _do_share(state, world, percent)
    return state


def _share(state: ReloadState, world: World) -> list[float]:
    """The share that the new generation has now in each group, percent."""
    found = [(group, world.pins.canary(group.endpoint)) for group in state.kept]
    return [share[1] if share and share[0] == group.new_generation else 0.0 for group, share in found]


def _give(state: ReloadState, world: World, percent: float) -> None:
    for group in state.kept:
        ways.of(group).share(group, world, percent)


def _do_share(state: ReloadState, world: World, percent: float) -> ReloadState:
    before, start = _counts(state, world), world.clock.now_s()
    _give(state, world, percent)
    world.tell.note(f"{percent:g} % of the new connections go to the new generation for {state.plan.step_s:g} s")
    state = save(state, world, share_until=world.clock.wall_s() + state.plan.step_s)
    _watch(state, world)
    ask_new(state, world, steered=True)
    to_new, to_old = (now - then for now, then in zip(_counts(state, world), before, strict=True))
    duration_s = round(world.clock.now_s() - start, 3)
    done = CanaryStep(percent=percent, duration_s=duration_s, to_new=to_new, to_old=to_old)
    return save(state, world, canary=(*state.canary, done), share_until=None)


def _counts(state: ReloadState, world: World) -> tuple[int, int]:
    """New connections that the program gave to the canary and to the working generation."""
    counters = [found for group in state.kept if (found := world.pins.counters(group.endpoint)) is not None]
    return sum(each.canary for each in counters), sum(each.selected for each in counters)


def _watch(state: ReloadState, world: World) -> None:
    """Raises ToolError as soon as a new listener closes, or a counter of --abort-on grows too much."""

    def never() -> bool:
        gone = state.new_cookies - sides.queues(state, world).keys()
        if gone:
            raise ToolError(f"{len(gone)} of the new listeners closed again")
        check_counters(state, world)
        for group in state.kept:
            ways.of(group).check(group, world)
        return False

    world.clock.wait(never, state.plan.step_s)
