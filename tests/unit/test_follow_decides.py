"""What a follower does with a group and with each listener, for every situation."""

from __future__ import annotations

import itertools

import pytest

from reuseport_tool.follow.decide import AGAIN_S, Action, Announced, Look, Unregistered, act, sort


def look(**changes: object) -> Look:
    """A group that is followed and has two listeners of which one is new."""
    usual = {"first": False, "listeners": 2, "held": 2, "attached": True, "interrupted": False, "working": True}
    return Look(**{**usual, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (look(listeners=0, held=0), Action.NOTHING),
        (look(), Action.JOIN),
        (look(held=1), Action.JOIN),
        (look(first=True), Action.ATTACH),
        (look(first=True, attached=False, working=False), Action.ATTACH),
        (look(attached=False, working=False), Action.ATTACH),
        (look(working=False), Action.RENEW),
        (look(working=False, held=1), Action.WAIT),
        (look(attached=False, working=False, held=1), Action.WAIT),
        (look(first=True, attached=False, working=False, held=1), Action.ATTACH),
        (look(interrupted=True), Action.JOIN),
        (look(interrupted=True, first=True), Action.JOIN),
        (look(interrupted=True, working=False), Action.REFUSE),
        (look(interrupted=True, attached=False, working=False), Action.REFUSE),
    ],
    ids=repr,
)
def test_a_group(found: Look, action: Action) -> None:
    assert act(found) is action


def test_an_interrupted_reload_is_never_attached_over() -> None:
    for first, attached, working in itertools.product([False, True], repeat=3):
        found = look(first=first, attached=attached, working=attached and working, interrupted=True)
        assert act(found) in (Action.JOIN, Action.REFUSE)


def test_each_listener() -> None:
    chosen = sort(
        [
            Unregistered(cookie=1, held=True, is_kin=True),
            Unregistered(cookie=2, held=True, is_kin=False),
            Unregistered(cookie=3, held=False, is_kin=False),
            Unregistered(cookie=4, held=False, is_kin=True),
        ]
    )
    assert (chosen.take, chosen.leave, chosen.wait) == ((1,), (2,), (3, 4))


def test_an_announced_listener_is_missing_until_it_is_found() -> None:
    announced = Announced()
    announced.start({1})
    announced.account(1, {1}, now=10.0)
    assert announced.missing
    announced.account(0, {1, 2}, now=10.1)
    assert not announced.missing


@pytest.mark.parametrize(("event_s", "missing"), [(10.5, False), (12.0, True)])
def test_one_that_is_found_before_its_event_is_a_credit_that_does_not_last(event_s: float, missing: bool) -> None:
    """The event of a later listener must not be taken for that of one whose event was lost."""
    announced = Announced()
    announced.start({1})
    announced.account(0, {1, 2}, now=10.0)
    announced.account(1, {1, 2}, now=event_s)
    assert announced.missing is missing


def test_one_that_closed_again_is_given_up_after_every_wait() -> None:
    announced = Announced()
    announced.start(())
    announced.account(1, (), now=10.0)
    assert [announced.next_s() for _ in AGAIN_S] == list(AGAIN_S)
    assert announced.next_s() is None
    announced.give_up()
    assert not announced.missing
    announced.hurry()
    assert announced.next_s() == AGAIN_S[0]
