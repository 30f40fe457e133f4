"""Strategies, the state of a reload, and trials."""

from __future__ import annotations

import dataclasses

import pytest

from reuseport_tool.errors import Conflict, RolledBack, Unsupported
from reuseport_tool.models import Strategy
from reuseport_tool.reload import survey, transaction
from reuseport_tool.reload.plan import Plan
from reuseport_tool.reload.state import ReloadState, decode, encode
from tests.unit.reload.fake.records import OLD, WEB, Pin
from tests.unit.reload.scenes import go, opens, scene, settled


def test_drain_waits_and_gives_up() -> None:
    world = scene()
    world.later(1.0, lambda: setattr(world.socks[1], "accepts", True))
    assert go(world, strategy=Strategy.DRAIN).result == "reloaded"
    assert world.answered[OLD] == 5
    world = scene()
    with pytest.raises(RolledBack, match="5 queued"):
        go(world, strategy=Strategy.DRAIN, drain_timeout_s=1.0)
    world = scene()
    world.sees_kernel = False
    with pytest.raises(RolledBack) as caught:
        go(world, strategy=Strategy.DRAIN)
    assert isinstance(caught.value.__cause__, Unsupported)


def test_what_cannot_be_seen_is_unknown() -> None:
    world = scene()
    world.sees_kernel = False
    report = go(world)
    assert report.balance is None
    assert report.queued_at_stop.half_open is None


def test_the_balance_adds_up() -> None:
    balance = go(scene()).balance
    assert (balance.waiting, balance.moved, balance.old_side, balance.lost, balance.half_open) == (5, 5, 0, 0, 0)


def state() -> ReloadState:
    world = scene()
    made = world.world()
    plan = Plan(command=("new",))
    return transaction.begun([WEB], plan, Strategy.MIGRATE, survey.survey([WEB], plan, made), made)


def test_a_state_outlives_its_process() -> None:
    assert decode(encode(state())) == state()
    with pytest.raises(Conflict):
        decode(b"{}")


def test_a_reload_that_was_being_undone_is_not_resumed() -> None:
    with pytest.raises(Conflict):
        transaction.resumed(dataclasses.replace(state(), step="roll back"), scene().world())


@pytest.mark.parametrize("gone", [False, True])
def test_what_cannot_be_aborted(gone: bool) -> None:
    world = scene()
    found = state()
    if gone:
        world.end(OLD)
    else:
        found = dataclasses.replace(found, stop_asked=True)
    with pytest.raises(Conflict, match="no way back"):
        transaction.aborted(found, world.world())


def test_a_trial_tells_what_would_be_done() -> None:
    tried = state()
    world = scene()
    plan = transaction.planned(tried, world.world(), None, ["slow"])
    assert (plan.code, plan.stop, plan.pids, plan.warnings) == (0, "SIGTERM", (OLD,), ("slow",))
    plan = transaction.planned(tried, world.world(), Conflict("no", hint="do"), [])
    assert (plan.code, plan.refusal, plan.hint) == (7, "no", "do")
    by_itself = dataclasses.replace(tried, plan=Plan(run="restart"))
    assert "restart" in transaction.planned(by_itself, world.world(), None, []).stop


def test_two_reloads_after_each_other() -> None:
    world = scene()
    go(world)
    settled(world, 5)
    world.behaviour = opens()
    assert go(world).new.generation == 3
    assert Pin().working == 1
