"""The program of a group stays ours: programs of others before, during and after a reload."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import Conflict, RolledBack, ToolError
from reuseport_tool.models import Strategy
from tests.unit.reload.fake.records import FOREIGN, OLD, WEB
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import go, opens, outcome, refused, scene, settled, undone


@pytest.mark.parametrize("attached", [False, True])
def test_a_new_server_with_a_program_of_its_own(attached: bool) -> None:
    def behave(world: FakeWorld, pid: int) -> None:
        opens()(world, pid)
        world.later(0.3, lambda: world.programs.update({WEB: 0}))

    world = scene(behaviour=behave, attached=attached)
    with pytest.raises(RolledBack, match="classic BPF"):
        go(world)
    undone(world, attached)


@pytest.mark.parametrize("strategy", [Strategy.MIGRATE, Strategy.SYSCTL])
def test_a_foreign_program(strategy: Strategy) -> None:
    world = scene()
    world.programs[WEB] = FOREIGN
    _, error = outcome(lambda: go(world, strategy=strategy))
    if strategy is Strategy.SYSCTL:
        settled(world, 5)
        assert world.programs[WEB] == FOREIGN
    else:
        assert isinstance(error, Conflict)


def test_the_sysctl_beside_our_own_program() -> None:
    refused(Conflict, scene(attached=True), strategy=Strategy.SYSCTL)


def test_a_program_that_is_replaced_after_the_stop() -> None:
    world = scene()
    world.procs[OLD].on_term = lambda: (world.programs.update({WEB: FOREIGN}), world.end(OLD))  # type: ignore[assignment]
    result, error = outcome(lambda: go(world))
    assert (result, type(error)) == ("reloaded", ToolError)
