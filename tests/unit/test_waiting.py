"""Waiting has a deadline, and asks at least once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from reuseport_tool.follow.wakeups import Wakeups
from reuseport_tool.kernel import interrupts
from reuseport_tool.kernel.interrupts import Clock
from reuseport_tool.waiting import wait_until


def test_a_true_condition_needs_no_time() -> None:
    assert wait_until(lambda: True, timeout_s=0)


def test_a_false_condition_ends_at_the_deadline() -> None:
    assert not wait_until(lambda: False, timeout_s=0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_an_interrupt_ends_a_wait(number: signal.Signals) -> None:
    with Clock() as clock:
        os.kill(os.getpid(), number)
        assert clock.interrupted()
        with pytest.raises(KeyboardInterrupt):
            clock.wait(lambda: False, 60)
        with pytest.raises(KeyboardInterrupt):
            clock.check()


def test_a_wait_without_an_interrupt() -> None:
    with Clock() as clock:
        assert clock.wait(lambda: True, 0)
        assert not clock.wait(lambda: False, 0.02)
        assert not clock.interrupted()


def test_an_interrupt_that_is_held_back_arrives_later() -> None:
    with Clock() as clock:
        with clock.held_back(), clock.held_back():
            os.kill(os.getpid(), signal.SIGINT)
            clock.check()
            assert clock.wait(lambda: True, 0)
        with pytest.raises(KeyboardInterrupt):
            clock.check()


@pytest.fixture
def ignored() -> Iterator[signal.Signals]:
    """As nohup(1) does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("inside", [Clock, interrupts.raising, Wakeups])
def test_what_the_tool_was_started_to_ignore_does_not_interrupt(
    inside: Callable[[], AbstractContextManager[object]], ignored: signal.Signals
) -> None:
    with inside() as made:
        os.kill(os.getpid(), ignored)
        os.kill(os.getpid(), ignored)
        if isinstance(made, Clock):
            made.check()
        assert not isinstance(made, Wakeups) or not made.stop
    assert signal.getsignal(ignored) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_outside_of_a_clock_an_interrupt_can_raise_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupts.raising():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Clock():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that outlive the deadline of a test, unless something ends them."""
    monkeypatch.setattr(interrupts, "_FIRST_S", 300.0)
    monkeypatch.setattr(interrupts, "_TOLD_S", 300.0)


@pytest.mark.usefixtures("long_pauses")
def test_an_event_ends_a_pause() -> None:
    reader, writer = os.pipe()
    taken: list[bytes] = []
    with Clock() as clock:
        clock.wake_on(reader, lambda: taken.append(os.read(reader, 9)))
        threading.Timer(0.02, os.write, (writer, b".")).start()
        assert clock.wait(lambda: bool(taken), 100, told=True)
        clock.forget(reader)
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("long_pauses")
def test_the_end_of_a_child_ends_a_pause() -> None:
    start = time.monotonic()
    with Clock() as clock, subprocess.Popen(["sleep", "0.05"]) as child:
        assert clock.wait(lambda: child.poll() is not None, 100, told=True)
    assert time.monotonic() - start < 100


def test_pauses_are_longer_where_events_tell_and_short_for_a_close_look() -> None:
    def looks(told: bool = False, closely_s: float = 0.0) -> int:
        count = 0

        def never() -> bool:
            nonlocal count
            count += 1
            return False

        with Clock() as clock:
            assert not clock.wait(never, 0.4, told=told, closely_s=closely_s)
        return count

    assert looks(told=True) < looks(told=False) < looks(closely_s=0.4)
