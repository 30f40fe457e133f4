"""The metrics, read back by the parser of Prometheus' own client library."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reuseport_tool.cli.show import metrics
from reuseport_tool.errors import Unsupported
from reuseport_tool.group import problems
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.models import Canary, Counters, FlowCounters, FlowTable, Followed, Group, LastReload, Resets, Status
from tests.records import some
from tests.unit.test_problems import GROUP, KILLED, listeners

RULES = Path(__file__).parents[2] / "packaging" / "prometheus" / "reuseport-tool.rules.yml"
COUNTERS = Counters(selected=10, fallback=1, migrated_established=5, migrated_syn_recv=6, migrated_new_syn_recv=7)
MIB = some(TcpCounters, TCPMigrateReqSuccess=18, TCPMigrateReqFailure=2, OutRsts=3)
BUSY = replace(
    GROUP,
    listeners=listeners(3, 5),
    counters=COUNTERS,
    canary=Canary(generation=3, percent=5.0),
    reload=KILLED,
    last_reload=LastReload(
        result="rolled-back", ended_at=1700000000.5, duration_s=2.5, moved=7, lost=None, failure="the health check"
    ),
    followed=Followed(
        pid=77,
        since=1.0,
        resets=Resets(never_accepted=21, handshakes=22, refused=None, accepted=23),
    ),
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(*groups: Group) -> Samples:
    found = tuple(replace(group, problems=problems.of_group(group)) for group in groups)
    text = metrics.exposition(Status(groups=found), MIB).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    (matching,) = [
        number for (sample, has), number in found.items() if sample == name and frozenset(labels.items()) <= has
    ]
    return matching


def test_every_number_is_there() -> None:
    found = samples(BUSY)
    endpoint = BUSY.endpoint
    assert value(found, "reuseport_group_info", endpoint=endpoint, policy="hash", program="hash") == 1
    assert value(found, "reuseport_group_working_generation", endpoint=endpoint) == 2
    assert value(found, "reuseport_group_canary_ratio", endpoint=endpoint) == 0.05
    assert value(found, "reuseport_group_listeners", flag="working") == 2
    assert value(found, "reuseport_listener_accept_queue", cookie="1", pid="4242", command="nginx") == 5
    assert value(found, "reuseport_listener_backlog", cookie="1") == 511
    assert value(found, "reuseport_group_selected_total", to="working") == 10
    assert value(found, "reuseport_group_migrated_total", state="new_syn_recv") == 7
    assert value(found, "reuseport_group_resets_total", kind="never_accepted") == 21
    assert value(found, "reuseport_group_resets_total", kind="accepted") == 23
    assert not [
        labels for name, labels in found if name == "reuseport_group_resets_total" and ("kind", "refused") in labels
    ]
    assert value(found, "reuseport_group_problems", kind="stale") == 1
    assert value(found, "reuseport_group_problems", kind="imbalance") == 0
    assert value(found, "reuseport_netstat_TcpExt_TCPMigrateReqFailure_total") == 2
    assert value(found, "reuseport_netstat_Tcp_OutRsts_total") == 3
    assert value(found, "reuseport_reload_begun_timestamp_seconds", running="false", step="switch") == 0
    assert value(found, "reuseport_last_reload_result", endpoint=endpoint, result="rolled-back") == 1
    assert value(found, "reuseport_last_reload_result", endpoint=endpoint, result="reloaded") == 0
    assert value(found, "reuseport_last_reload_timestamp_seconds", endpoint=endpoint) == 1700000000.5
    assert value(found, "reuseport_last_reload_duration_seconds", endpoint=endpoint) == 2.5
    assert value(found, "reuseport_last_reload_moved", endpoint=endpoint) == 7
    assert not [name for name, _ in found if name == "reuseport_last_reload_lost"]  # it was not measured


def test_the_flows_of_a_udp_group_are_there() -> None:
    counters = FlowCounters(new=1, kept=2, gone=3, learnt=4, moved=5, older=6)
    table = FlowTable(mode="quic", flows=7, capacity=8, connection_ids=9, counters=counters)
    found = samples(replace(BUSY, flows=table))
    assert value(found, "reuseport_group_flows", mode="quic") == 7
    assert value(found, "reuseport_group_flow_capacity", mode="quic") == 8
    assert value(found, "reuseport_group_connection_ids", mode="quic") == 9
    events = ("new", "kept", "gone", "learnt", "moved", "older")
    assert [value(found, "reuseport_group_flow_events_total", event=event) for event in events] == [1, 2, 3, 4, 5, 6]
    without = samples(replace(BUSY, flows=replace(table, mode="address", connection_ids=None)))
    assert not [name for name, _ in without if name == "reuseport_group_connection_ids"]


def test_a_hostile_name_stays_one_label() -> None:
    name = 'a"} 1\nb{x="\\'
    listener = replace(BUSY.listeners[0], command=name)
    assert value(samples(replace(BUSY, listeners=(listener,))), "reuseport_listener_accept_queue", command=name) == 3


def test_no_group_is_no_error() -> None:
    assert value(samples(), "reuseport_netstat_TcpExt_TCPMigrateReqSuccess_total") == 18


def test_the_alerts_name_metrics_that_exist() -> None:
    measured = replace(BUSY, last_reload=replace(BUSY.last_reload, lost=1))
    names = {name for name, _ in samples(measured)}
    used = {
        word
        for line in RULES.read_text().splitlines()
        if "expr:" in line
        for word in re.findall(r"reuseport_\w+", line)
    }
    assert used
    assert used <= names


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(Unsupported) as caught:
        metrics.exposition(Status(groups=()), MIB)
    assert caught.value.hint is not None
    assert "python3-prometheus-client" in caught.value.hint
