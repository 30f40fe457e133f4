"""Which maps a group has for what it keeps, and what is wrong with one that is full."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from reuseport_tool.cli.show.group import _flow_table
from reuseport_tool.group import layout, policy, problems
from reuseport_tool.kernel import flow_map
from reuseport_tool.kernel.abi import FLOW_KEY, FLOW_WORD
from reuseport_tool.kernel.program import bpf_dir
from reuseport_tool.models import FlowCounters, FlowMode, FlowTable
from tests.records import some
from tests.unit.test_problems import GROUP

TABLE = FlowTable(mode="quic", flows=10, capacity=100, connection_ids=10, counters=some(FlowCounters))


@pytest.mark.parametrize("mode", FlowMode)
def test_the_maps_tell_the_mode(mode: FlowMode) -> None:
    assert layout.flow_mode([*layout.SHAPES, *layout.FLOW_NAMES[mode]]) is mode


@pytest.mark.parametrize("missing", layout.FLOW_NAMES[FlowMode.QUIC])
def test_a_map_that_is_missing_is_no_mode_that_needs_it(missing: str) -> None:
    left = [name for name in layout.ALL_FLOW_NAMES if name != missing]
    assert missing not in layout.FLOW_NAMES[layout.flow_mode(left)]


def test_a_plain_program_is_compiled_without_flows() -> None:
    source = policy.policy_source(bpf_dir() / "policy" / "hash.c")
    assert not {"FLOWS", "QUIC"} & source.defines.keys()
    assert source.maps == layout.MAPS


@pytest.mark.parametrize("mode", [FlowMode.ADDRESS, FlowMode.QUIC])
def test_a_program_with_flows_has_their_maps(mode: FlowMode) -> None:
    source = policy.policy_source(bpf_dir() / "policy" / "hash.c", flows=mode)
    assert ("QUIC" in source.defines) is (mode is FlowMode.QUIC)
    assert source.defines["UNIT_SHIFT"] == flow_map.UNIT_SHIFT
    assert source.maps == (*layout.MAPS, *layout.FLOW_MAPS[mode])


@pytest.mark.parametrize("days", [0, 1, 30, 365])
def test_a_flow_of_long_ago_does_not_look_alive(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """A drain waits for flows that are alive, and --flow-timeout may be a year."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    seen = (now - days * 86_400 * 10**9 >> flow_map.UNIT_SHIFT) & 0xFFFFFFFF
    monkeypatch.setattr(flow_map, "_elements", lambda _: [(bytes(FLOW_KEY.size), FLOW_WORD.pack(seen, 0, 1))])
    unused: Any = None
    [flow] = flow_map.flows(unused)
    assert abs(flow.idle_s - days * 86_400) < 60


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (TABLE, []),
        (replace(TABLE, flows=51), ["51 flows"]),
        (replace(TABLE, connection_ids=51), ["51 connection IDs"]),
        (replace(TABLE, flows=60, connection_ids=None), ["60 flows"]),
    ],
)
def test_more_than_half_of_either_is_crowded(table: FlowTable, said: list[str]) -> None:
    found = [problem for problem in problems.of_group(replace(GROUP, flows=table)) if problem.kind == "crowded"]
    assert [text.split(" are recorded")[0] for text in (problem.detail for problem in found)] == said


def test_status_shows_ids_where_there_are_some() -> None:
    assert "10 connection IDs" in _flow_table(TABLE)
    assert "connection IDs" not in _flow_table(replace(TABLE, mode="address", connection_ids=None))
