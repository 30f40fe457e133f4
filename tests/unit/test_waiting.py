"""Waiting has a deadline, and asks at least once."""

from __future__ import annotations

import os
import signal

import pytest

from reuseport_tool.reload.interrupts import Interrupts
from reuseport_tool.waiting import wait_until, wait_until_stable


def test_a_true_condition_needs_no_time() -> None:
    assert wait_until(lambda: True, timeout_s=0)


def test_a_false_condition_ends_at_the_deadline() -> None:
    assert not wait_until(lambda: False, timeout_s=0.05)


def test_stable_means_enough_or_no_more() -> None:
    counts = iter([0, 1, 2, *[3] * 1000])
    assert wait_until_stable(lambda: next(counts), enough=3, settle_s=10, timeout_s=5)
    counts = iter([0, 1, *[2] * 1000])
    assert wait_until_stable(lambda: next(counts), enough=None, settle_s=0.05, timeout_s=5)
    assert not wait_until_stable(lambda: 0, enough=None, settle_s=0, timeout_s=0.05)


def test_an_interrupt_is_immediate() -> None:
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("deliver", [True, False])
def test_a_shield_holds_it_back(deliver: bool) -> None:
    reached = []

    def work() -> None:
        with interrupts.shielded(deliver=deliver):
            with interrupts.shielded():
                os.kill(os.getpid(), signal.SIGINT)
            reached.append("inner")

    with Interrupts() as interrupts:
        if deliver:
            with pytest.raises(KeyboardInterrupt):
                work()
        else:
            work()
    assert reached == ["inner"]
