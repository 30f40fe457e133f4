"""What `doctor` says of --flows: yes in every VM; and each answer made to fail, so that its yes means something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reuseport_tool.check import udp_modes
from reuseport_tool.errors import Unsupported
from reuseport_tool.group.choice import Choice
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import cgroup
from reuseport_tool.models import Feature, FlowMode
from reuseport_tool.probes.engine import Probe

pytestmark = pytest.mark.usefixtures("root")

PROBES = {FlowMode(probe.name.split()[-1]): probe for probe in udp_modes.PROBES}


@pytest.mark.vm
@pytest.mark.parametrize("mode", FlowMode)
def test_it_does_it(mode: FlowMode) -> None:
    found = PROBES[mode].answer()
    assert found.available is True, found


def _answer(probe: Probe, patch: pytest.MonkeyPatch) -> Feature:
    patch.setattr(udp_modes, "_WAIT_S", 0.2)
    return probe.answer()


def _nothing_switches(patch: pytest.MonkeyPatch) -> None:
    switch = Choice.switch
    patch.setattr(Choice, "switch", lambda self, number: switch(self, 1))


def _flows_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    made = udp_modes.FlowChoice
    patch.setattr(udp_modes, "FlowChoice", lambda **_: made(mode=FlowMode.NONE))


def _only_addresses_are_kept(patch: pytest.MonkeyPatch) -> None:
    made = udp_modes.FlowChoice
    patch.setattr(udp_modes, "FlowChoice", lambda **_: made(mode=FlowMode.ADDRESS, entries=1024))
    patch.setattr(Scratch, "read_answers", lambda *_: None)


def _answers_are_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scratch, "read_answers", lambda *_: None)


def _no_cgroup(patch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise Unsupported("no cgroup2 is mounted")

    patch.setattr(cgroup, "root", none)


@pytest.mark.parametrize(
    ("mode", "break_it"),
    [
        (FlowMode.NONE, _nothing_switches),
        (FlowMode.ADDRESS, _nothing_switches),
        (FlowMode.ADDRESS, _flows_are_not_kept),
        (FlowMode.QUIC, _nothing_switches),
        (FlowMode.QUIC, _only_addresses_are_kept),
        (FlowMode.QUIC, _answers_are_not_read),
        (FlowMode.QUIC, _no_cgroup),
    ],
)
def test_the_answer_is_no_without_what_it_stands_on(
    monkeypatch: pytest.MonkeyPatch, mode: FlowMode, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    found = _answer(PROBES[mode], monkeypatch)
    assert found.available is False, found
