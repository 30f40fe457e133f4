"""`reload --unit web@`: which instance takes over, and when the new one is stopped again."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError, UsageError
from reuseport_tool.kernel import systemd
from reuseport_tool.reload import unit
from tests.unit.test_timeline import REPORT, ROLLED_BACK


class Systemd:
    """What a systemd would be asked to do."""

    def __init__(self, active: list[str], enabled: bool) -> None:
        self.active = active
        self.enabled = enabled
        self.done: list[tuple[str, ...]] = []
        self.starts = True

    def start(self, name: str, _timeout_s: float) -> None:
        self.done.append(("start", name))
        if not self.starts:
            raise ToolError("systemctl start failed")

    def stop(self, name: str, _timeout_s: float) -> None:
        self.done.append(("stop", name))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd(["web@a"], enabled=True)
    monkeypatch.setattr(systemd, "active_instances", lambda _template: made.active)
    monkeypatch.setattr(systemd, "is_enabled", lambda _unit: made.enabled)
    monkeypatch.setattr(systemd, "main_pid", lambda _unit: 4711)
    monkeypatch.setattr(systemd, "start", made.start)
    monkeypatch.setattr(systemd, "stop", made.stop)
    monkeypatch.setattr(systemd, "enable_instead", lambda new, old: made.done.append(("enable", new, "for", old)))
    return made


@pytest.mark.parametrize(
    ("active", "expected"),
    [(["web@a"], ("web@a", "web@b")), (["web@b"], ("web@b", "web@a")), (["web@blue"], ("web@blue", "web@a"))],
)
def test_the_other_instance_takes_over(active: list[str], expected: tuple[str, str], fake: Systemd) -> None:
    fake.active = active
    assert unit.turn("web@") == expected
    assert unit.turn("web@.service") == expected


@pytest.mark.parametrize(
    ("template", "active", "error"),
    [
        ("web@", [], NotFound),
        ("web@", ["web@a", "web@b"], Conflict),
        ("web", ["web@a"], UsageError),
        ("@", [], UsageError),
        ("../web@", ["web@a"], UsageError),
    ],
)
def test_what_is_refused(template: str, active: list[str], error: type[ToolError], fake: Systemd) -> None:
    fake.active = active
    with pytest.raises(error):
        unit.turn(template)
    assert fake.done == []


def test_a_reload_that_goes_through(fake: Systemd) -> None:
    with unit.started("web@", 5, 5) as twin:
        assert (twin.old, twin.new, twin.pid) == ("web@a", "web@b", 4711)
        assert twin.stop_command == "systemctl stop web@a"
    assert fake.done == [("start", "web@b"), ("enable", "web@b", "for", "web@a")]


def test_a_unit_that_is_started_by_hand_stays_so(fake: Systemd) -> None:
    fake.enabled = False
    with unit.started("web@", 5, 5):
        pass
    assert fake.done == [("start", "web@b")]


@pytest.mark.parametrize(
    ("error", "is_stopped"),
    [
        (RolledBack("no", report=ROLLED_BACK), True),
        (UsageError("no"), True),
        (KeyboardInterrupt(), True),
        (ToolError("the health command failed after the stop", report=REPORT), False),
    ],
    ids=["rolled back", "refused", "ctrl-c", "after the stop"],
)
def test_the_new_instance_is_stopped_unless_it_serves(error: BaseException, is_stopped: bool, fake: Systemd) -> None:
    def fail(**_: Any) -> None:
        raise error

    with pytest.raises(type(error)), unit.started("web@", 5, 5):
        fail()
    assert (("stop", "web@b") in fake.done) is is_stopped
    assert not any(entry[0] == "enable" for entry in fake.done)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_interrupt_while_it_starts_stops_it(
    number: signal.Signals, fake: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str, _timeout_s: float) -> None:
        fake.done.append(("start", name))
        signal.raise_signal(number)

    monkeypatch.setattr(systemd, "start", start)
    with pytest.raises(KeyboardInterrupt), unit.started("web@", 5, 5):
        pytest.fail("it was interrupted")
    assert fake.done == [("start", "web@b"), ("stop", "web@b")]


def test_a_new_instance_that_does_not_start_is_stopped(fake: Systemd) -> None:
    fake.starts = False
    with pytest.raises(ToolError), unit.started("web@", 5, 5):
        pytest.fail("it did not start")
    assert fake.done == [("start", "web@b"), ("stop", "web@b")]
