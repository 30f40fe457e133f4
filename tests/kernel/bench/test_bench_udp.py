"""bench udp with few, small rounds: its structure and its proofs, not its figures."""

from __future__ import annotations

import os

import pytest

from reuseport_tool.bench import udp as bench_udp
from reuseport_tool.errors import ToolError
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import netns, sockets
from reuseport_tool.models import FlowCounters
from tests.records import some
from tests.tool import Tool


def test_every_mode_meets_every_number_of_flows(tool: Tool) -> None:
    report = tool.ok("bench", "udp", "--rounds", 2, "--datagrams", 50, "--flows", 1, "--flows", 300)
    assert [(arm["program"], arm["flows"]) for arm in report["arms"]] == [
        ("-", 1),
        ("none", 1),
        *((mode, flows) for mode in ("address", "quic") for flows in (1, 300)),
    ]
    for arm in report["arms"]:
        assert arm["relative"]["low"] <= arm["relative"]["median"] <= arm["relative"]["high"]
        assert 100 < arm["datagrams_per_s"] < 10_000_000
        assert (arm["ns_per_run"] is None) == (arm["program"] == "-")
    base, none, *_ = report["arms"]
    assert set(base["relative"].values()) == {1.0}
    assert none["ns_relative"] == 1.0


@pytest.mark.parametrize(
    ("target", "name", "broken", "said"),
    [
        (sockets, "attach_program", lambda *_: None, "ran 0 times"),
        (Scratch, "flow_counters", lambda _: some(FlowCounters), "did not keep them"),
        (bench_udp, "_read_all", lambda _: 0, "did not arrive"),
    ],
)
def test_what_proves_nothing_is_an_error(
    root: None, monkeypatch: pytest.MonkeyPatch, target: object, name: str, broken: object, said: str
) -> None:
    before = netns.identity(), os.sched_getaffinity(0)
    monkeypatch.setattr(target, name, broken)
    with pytest.raises(ToolError, match=said):
        bench_udp.bench(2, 10, [1])
    assert (netns.identity(), os.sched_getaffinity(0)) == before
