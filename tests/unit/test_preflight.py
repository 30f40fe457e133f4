"""Which differences of socket options stop a reload."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reuseport_tool.kernel.sockets import ListenerOptions
from reuseport_tool.reload.preflight import compare, compare_capacity
from tests.records import some

OPTIONS = some(ListenerOptions, save_syn=0, transparent=0, defer_accept=0, receive_buffer=131072, congestion="cubic")


def test_no_difference() -> None:
    assert compare(OPTIONS, OPTIONS).unsafe == ()
    assert compare(OPTIONS, OPTIONS).harmless == ()


@pytest.mark.parametrize("name", ["save_syn", "transparent"])
def test_unsafe(name: str) -> None:
    found = compare(OPTIONS, replace(OPTIONS, **{name: 1}))
    assert len(found.unsafe) == 1
    assert name in found.unsafe[0]


@pytest.mark.parametrize(("name", "value"), [("congestion", "bbr"), ("receive_buffer", 1), ("defer_accept", 5)])
def test_harmless(name: str, value: object) -> None:
    found = compare(OPTIONS, replace(OPTIONS, **{name: value}))
    assert (len(found.unsafe), len(found.harmless)) == (0, 1)
    assert str(getattr(OPTIONS, name)) in found.harmless[0]


def test_what_the_kernel_did_not_tell_is_no_difference() -> None:
    assert compare(replace(OPTIONS, save_syn=None), replace(OPTIONS, save_syn=1)).unsafe == ()


@pytest.mark.parametrize(("queued", "backlogs", "fits"), [(0, [], True), (10, [5, 5], True), (11, [5, 5], False)])
def test_capacity(queued: int, backlogs: list[int], fits: bool) -> None:
    assert (compare_capacity(queued, backlogs).unsafe == ()) is fits
