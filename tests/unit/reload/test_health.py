"""What the new side must pass before the old one is stopped: checks, counters and the same options."""

from __future__ import annotations

import dataclasses

import pytest

from reuseport_tool.errors import RolledBack
from reuseport_tool.reload.thresholds import Threshold
from tests.unit.reload.fake.records import OLD, OPTIONS
from tests.unit.reload.scenes import go, opens, others, scene, undone


def test_a_failing_health_check() -> None:
    for how in ({"health_command": "check"}, {"health_url": "http://127.0.0.1/"}, {"canary": (5.0,), "step_s": 0.1}):
        world = scene(behaviour=opens(accepts=False, queue=1) if "canary" in how else None)
        world.failing_hooks = {"check"}
        world.url_answers = "health_url" not in how
        with pytest.raises(RolledBack):
            go(world, health_timeout_s=0.5, **how)
        assert OLD in world.procs
        assert not others(world)


def test_a_counter_that_grows() -> None:
    world = scene()

    def lose() -> None:
        world.lost = 7

    world.later(1.0, lose)
    with pytest.raises(RolledBack, match="resets grew by 7"):
        go(world, canary=(10.0,), step_s=3.0, abort_on=(Threshold(counter="resets", limit=5),))


def test_options_that_differ() -> None:
    for field, unsafe in (("save_syn", True), ("no_delay", False)):
        options = dataclasses.replace(OPTIONS, **{field: 1})
        world = scene(behaviour=opens(options=options))
        if unsafe:
            with pytest.raises(RolledBack, match=field):
                go(world)
            undone(world, False)
            world = scene(behaviour=opens(options=options))
        report = go(world, force=True)
        assert any(field in warning for warning in report.warnings)
