"""The record that a reload leaves for each of its groups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reuseport_tool.errors import RolledBack
from reuseport_tool.models import Endpoint, HandedOver, LastReload, parse_endpoint
from reuseport_tool.reload import outcome
from tests.records import some
from tests.unit.reload.fake.journal import FakeJournal
from tests.unit.reload.fake.records import WEB
from tests.unit.reload.scenes import TLS, exits, go, opens, scene
from tests.unit.test_timeline import REPORT

DNS = parse_endpoint("udp://127.0.0.1:53")
HANDED = some(HandedOver, endpoint=str(DNS), unread=700, by_kernel=0, drops_old=3, drops_new=4, cut=5, evicted=6)


def record(endpoint: Endpoint, **change: object) -> LastReload:
    return outcome.of_group(replace(REPORT, **change), endpoint, 7.0, None)  # type: ignore[arg-type]


def test_every_group_of_a_reload_has_one() -> None:
    world = scene(WEB, TLS)
    go(world, WEB)
    assert {group: last.result for group, last in world.last_reloads.items()} == {WEB: "reloaded", TLS: "reloaded"}


def test_a_group_that_was_given_up_has_none() -> None:
    world = scene(WEB, TLS, behaviour=opens(WEB))
    world.later(1.0, lambda: setattr(world.socks[2], "accepts", True))
    go(world, WEB, drop=(TLS,))
    assert set(world.last_reloads) == {WEB}


def test_a_roll_back_says_why() -> None:
    world = scene(WEB, behaviour=exits(3))
    with pytest.raises(RolledBack) as caught:
        go(world, WEB)
    assert world.last_reloads[WEB].result == "rolled-back"
    assert world.last_reloads[WEB].failure == caught.value.message


def test_a_record_that_cannot_be_left_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world = scene(WEB)
    monkeypatch.setattr(FakeJournal, "leave", full)
    assert go(world, WEB).result == "reloaded"


def test_what_is_lost_is_counted_by_protocol() -> None:
    web = parse_endpoint("127.0.0.1:8080")
    assert (record(web).moved, record(web).lost) == (63, 3)
    assert record(web, resets=None).lost is None
    assert (record(DNS, datagrams=(HANDED,)).moved, record(DNS, datagrams=(HANDED,)).lost) == (None, 19)
    assert record(DNS, datagrams=(replace(HANDED, unread=None),)).lost is None
