"""Groups, listeners and kernel counters in the text format of Prometheus, by its own client library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.models import Group, Listener, ProblemKind, Status

_GROUP = ("endpoint", "netns")
_LISTENER = (*_GROUP, "cookie", "pid", "command", "generation", "flag")
# The counters of the program, by the label that tells them apart.
_MIGRATED = {
    "established": "migrated_established",
    "syn_recv": "migrated_syn_recv",
    "new_syn_recv": "migrated_new_syn_recv",
}
_SELECTED = {"working": "selected", "canary": "canary", "steered": "steered"}
_RESULTS = ("reloaded", "rolled-back", "failed")
_MIB_SECTIONS = {"OutRsts": "Tcp"}


def exposition(status: Status, mib: TcpCounters) -> bytes:
    """What a scrape gets.

    Raises:
        Unsupported: the client library is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise Unsupported(
            "Prometheus' client library for Python is not installed",
            hint="install python3-prometheus-client (Debian, Ubuntu), python3-prometheus_client (Fedora) or "
            "python-prometheus_client (Arch), or the package 'reuseport-tool[metrics]'",
        ) from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            families = _Families(GaugeMetricFamily, CounterMetricFamily)
            yield from families.of_groups(status)
            yield from families.of_listeners(status)
            yield from families.of_program(status)
            yield from families.of_flows(status)
            yield from families.of_followers(status)
            yield from families.of_reloads(status)
            yield from families.of_namespace(mib)

    registry = CollectorRegistry()
    registry.register(Collector())
    text: bytes = generate_latest(registry)
    return text


def _add_known(labels: list[str], *metrics: tuple[Any, float | None]) -> None:
    """A value to each family, where it is known."""
    for family, value in metrics:
        if value is not None:
            family.add_metric(labels, value)


class _Families:
    """The metric families, made by the two classes of the client library."""

    def __init__(self, gauge: Callable[..., Any], counter: Callable[..., Any]) -> None:
        self._gauge = gauge
        self._counter = counter

    def of_groups(self, status: Status) -> Iterator[Any]:
        info = self._gauge("reuseport_group_info", "The program of a group.", labels=(*_GROUP, "policy", "program"))
        working = self._gauge("reuseport_group_working_generation", "Where new connections go.", labels=_GROUP)
        share = self._gauge("reuseport_group_canary_ratio", "The canary's share of new connections.", labels=_GROUP)
        problems = self._gauge(
            "reuseport_group_problems", "What 'status --check' finds, by kind.", labels=(*_GROUP, "kind")
        )
        for group in status.groups:
            program = group.program
            policy, name = (program.policy or "foreign", program.name) if program else ("none", "")
            info.add_metric([*_group(group), policy, name], 1)
            if group.working_generation is not None:
                working.add_metric(_group(group), group.working_generation)
            if group.canary is not None:
                share.add_metric(_group(group), group.canary.percent / 100)
            for kind in ProblemKind:
                count = sum(problem.kind == kind for problem in group.problems)
                problems.add_metric([*_group(group), kind.value], count)
        yield from (info, working, share, problems)

    def of_listeners(self, status: Status) -> Iterator[Any]:
        counted = self._gauge("reuseport_group_listeners", "Listeners by flag.", labels=(*_GROUP, "flag"))
        queue = self._gauge("reuseport_listener_accept_queue", "Connections that wait for accept().", labels=_LISTENER)
        backlog = self._gauge("reuseport_listener_backlog", "The limit of the accept queue.", labels=_LISTENER)
        half_open = self._gauge(
            "reuseport_listener_half_open", "Request sockets that wait for the final ACK.", labels=_LISTENER
        )
        for group in status.groups:
            flags = [entry.flag for entry in group.listeners]
            for flag in sorted(set(flags)):
                counted.add_metric([*_group(group), flag], flags.count(flag))
            for entry in group.listeners:
                _add_known(
                    _listener(group, entry),
                    (queue, entry.accept_queue),
                    (backlog, entry.backlog),
                    (half_open, entry.half_open),
                )
        yield from (counted, queue, backlog, half_open)

    def of_program(self, status: Status) -> Iterator[Any]:
        selected = self._counter(
            "reuseport_group_selected", "New connections that the program assigned.", labels=(*_GROUP, "to")
        )
        migrated = self._counter(
            "reuseport_group_migrated", "Connections moved from a closing listener.", labels=(*_GROUP, "state")
        )
        fallback = self._counter(
            "reuseport_group_fallback", "New connections for which the kernel chose.", labels=_GROUP
        )
        dropped = self._counter("reuseport_group_dropped", "New connections that a policy refused.", labels=_GROUP)
        for group in status.groups:
            if group.counters is None:
                continue
            for family, names in ((selected, _SELECTED), (migrated, _MIGRATED)):
                for label, name in names.items():
                    family.add_metric([*_group(group), label], getattr(group.counters, name))
            fallback.add_metric(_group(group), group.counters.fallback)
            dropped.add_metric(_group(group), group.counters.dropped)
        yield from (selected, migrated, fallback, dropped)

    def of_flows(self, status: Status) -> Iterator[Any]:
        """Of UDP groups that keep some."""
        labels = (*_GROUP, "mode")
        flows = self._gauge("reuseport_group_flows", "UDP flows that are recorded.", labels=labels)
        ids = self._gauge("reuseport_group_connection_ids", "Connection IDs of QUIC that are known.", labels=labels)
        capacity = self._gauge("reuseport_group_flow_capacity", "How many of each can be recorded.", labels=labels)
        counted = self._counter(
            "reuseport_group_flow_events", "What the program counted of UDP flows.", labels=(*labels, "event")
        )
        for group in status.groups:
            table = group.flows
            if table is None:
                continue
            values = [*_group(group), table.mode]
            _add_known(values, (flows, table.flows), (capacity, table.capacity), (ids, table.connection_ids))
            for event, count in dataclasses.asdict(table.counters).items():
                counted.add_metric([*values, event], count)
        yield from (flows, ids, capacity, counted)

    def of_followers(self, status: Status) -> Iterator[Any]:
        """Resets, where a follower counts them; what the kernel does not show has no sample."""
        resets = self._counter(
            "reuseport_group_resets", "Resets on the group's port since its follower began.", labels=(*_GROUP, "kind")
        )
        for group in status.groups:
            if group.followed is not None:
                for kind, count in dataclasses.asdict(group.followed.resets).items():
                    if count is not None:
                        resets.add_metric([*_group(group), kind], count)
        yield resets

    def of_reloads(self, status: Status) -> Iterator[Any]:
        open_since = self._gauge(
            "reuseport_reload_begun_timestamp_seconds",
            "When the reload began that has not ended.",
            labels=(*_GROUP, "step", "running"),
        )
        for group in status.groups:
            if group.reload is not None:
                running = str(group.reload.running).lower()
                open_since.add_metric([*_group(group), group.reload.step, running], group.reload.begun_at)
        yield open_since
        yield from self._of_last_reloads(status)

    def _of_last_reloads(self, status: Status) -> Iterator[Any]:
        result = self._gauge(
            "reuseport_last_reload_result", "1 for what became of the last reload.", labels=(*_GROUP, "result")
        )
        ended = self._gauge("reuseport_last_reload_timestamp_seconds", "When the last reload ended.", labels=_GROUP)
        took = self._gauge("reuseport_last_reload_duration_seconds", "How long the last reload took.", labels=_GROUP)
        moved = self._gauge(
            "reuseport_last_reload_moved", "Connections that the last reload moved to another listener.", labels=_GROUP
        )
        lost = self._gauge(
            "reuseport_last_reload_lost",
            "Connections, or for UDP datagrams and flows, that the last reload lost.",
            labels=_GROUP,
        )
        for group, last in ((group, group.last_reload) for group in status.groups):
            if last is None:
                continue
            for name in _RESULTS:
                result.add_metric([*_group(group), name], int(name == last.result))
            _add_known(
                _group(group),
                (ended, last.ended_at),
                (took, last.duration_s),
                (moved, last.moved),
                (lost, last.lost),
            )
        yield from (result, ended, took, moved, lost)

    def of_namespace(self, mib: TcpCounters) -> Iterator[Any]:
        """As node_exporter calls them, but of the namespace that was asked for."""
        for name, value in dataclasses.asdict(mib).items():
            section = _MIB_SECTIONS.get(name, "TcpExt")
            family = self._counter(f"reuseport_netstat_{section}_{name}", f"{section}: {name} of the namespace.")
            family.add_metric([], value)
            yield family


def _group(group: Group) -> list[str]:
    return [group.endpoint, group.netns]


def _listener(group: Group, entry: Listener) -> list[str]:
    values = (entry.cookie, entry.pid, entry.command, entry.generation, entry.flag)
    return [*_group(group), *("" if value is None else str(value) for value in values)]
