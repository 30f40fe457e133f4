"""A server with several ports on IPv4 and IPv6 under load on all of them: stopping it closes every group at once.

The arm without the tool loses connections on every port, and the kernel's count of resets is that of the clients.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.bench.load import Ledger, Load
from reuseport_tool.kernel import diag, sysctl
from reuseport_tool.kernel.processes import Process
from reuseport_tool.kernel.resets import ResetCounter
from reuseport_tool.models import Protocol
from reuseport_tool.waiting import wait_until
from tests.servers import restart, servers
from tests.servers.servers import Server
from tests.tool import Tool

pytestmark = pytest.mark.slow

PORTS = (8080, 8443, 8444)
ADDRESSES = ("127.0.0.1", "::1")
GROUPS = len(PORTS) * len(ADDRESSES)
CLIENTS = 24  # of each group
PLAIN_RESTARTS = 2
RELOADS = 20
DEADLINE_S = 60.0

Place = tuple[str, int]
PLACES: tuple[Place, ...] = tuple((address, port) for port in PORTS for address in ADDRESSES)


@pytest.fixture(autouse=True)
def kernel_does_not_migrate(servers_end: None) -> None:
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")


@pytest.fixture
def nginx(tmp_path: Path) -> Server:
    """One worker, and so one listener in each group."""
    server = servers.nginx(tmp_path, "nginx")
    listen = "".join(
        f"listen {f'[{address}]' if ':' in address else address}:{port} reuseport; " for address, port in PLACES
    )
    config = tmp_path / "nginx" / "nginx.conf"
    config.write_text(config.read_text().replace(f"listen {servers.ADDRESS}:{servers.PORT} reuseport; ", listen))
    return server


def cookies() -> frozenset[int]:
    return frozenset(entry.cookie for entry in diag.bound_sockets(Protocol.TCP))


def start(server: Server) -> int:
    """Start a server, and wait until it listens in every group. Returns its process."""
    before = cookies()
    process = subprocess.Popen(server.command, start_new_session=True)
    assert wait_until(lambda: len(cookies() - before) >= GROUPS, DEADLINE_S), "it does not listen"
    return process.pid


def await_queue() -> None:
    """Wait until connections wait in every group, which is when a restart hurts."""

    def queued() -> bool:
        waiting: dict[str, int] = {}
        for entry in diag.bound_sockets(Protocol.TCP):
            name = str(entry.endpoint)
            waiting[name] = waiting.get(name, 0) + (entry.accept_queue or 0)
        return len(waiting) == GROUPS and min(waiting.values()) > 0

    assert wait_until(queued, DEADLINE_S, poll_s=0.002), "no queue in every group"


def under_load(restart_it: Callable[[], None], restarts: int) -> Mapping[Place, Ledger]:
    """What the clients of each group felt of so many restarts."""
    with ExitStack() as stack:
        loads = {place: stack.enter_context(Load(*place, CLIENTS)) for place in PLACES}
        for _ in range(restarts):
            await_queue()
            restart_it()
        return {place: load.stop() for place, load in loads.items()}


def test_a_plain_restart_loses_on_every_port_and_the_kernel_counts_each_loss(nginx: Server) -> None:
    master = start(nginx)

    def plainly() -> None:
        nonlocal master
        old, before = master, cookies()
        master = start(nginx)
        process = Process(old)
        process.signal(signal.SIGQUIT)
        assert wait_until(lambda: not before & cookies(), DEADLINE_S)
        process.close()

    with ResetCounter(PORTS) as counter:
        ledgers = under_load(plainly, PLAIN_RESTARTS)
        counted = {entry.port: entry.resets for entry in counter.by_port()}
    for port in PORTS:
        felt = [ledger for (_, where), ledger in ledgers.items() if where == port]
        print(port, felt, counted[port])
        assert min(ledger.reset for ledger in felt) > 0
        reset = counted[port].total - (counted[port].refused or 0)
        lost = sum(ledger.reset for ledger in felt)
        assert lost <= reset <= lost + sum(ledger.unanswered for ledger in felt)
        assert counted[port].refused in (None, sum(ledger.refused for ledger in felt))


def assert_none_lost(ledgers: Mapping[Place, Ledger]) -> None:
    for place, ledger in ledgers.items():
        print(place, ledger)
        assert ledger.answered > 0
        assert ledger.lost == 0


def test_a_reload_of_one_endpoint_hands_over_all_six_groups_and_loses_none(tool: Tool, nginx: Server) -> None:
    start(nginx)
    reports = []

    def by_the_tool() -> None:
        options = ("--stop-signal", nginx.stop_signal, "--listeners", nginx.listeners)
        reports.append(tool.ok("reload", PORTS[0], *options, "--", *nginx.command))

    with ResetCounter(PORTS) as counter:
        ledgers = under_load(by_the_tool, RELOADS)
        assert counter.counts.rows() == ()
    assert_none_lost(ledgers)
    for report in reports:
        assert len(report["groups"]) == GROUPS
        assert (report["resets"]["never_accepted"], report["resets"]["handshakes"]) == (0, 0)
        assert report["resets"]["refused"] in (None, 0)
    assert sum(report["migrated"]["total"] for report in reports) > 0


INSTANCES, ROUNDS = 4, 5


def holders() -> dict[int, frozenset[int]]:
    """The cookies of the listeners below each master."""
    found: dict[int, set[int]] = {}
    for member in servers.all_listeners():
        for master in restart.owners_of([member]):
            found.setdefault(master, set()).add(member.cookie)
    return {master: frozenset(cookies) for master, cookies in found.items()}


def test_instances_are_rolled_one_after_the_other_and_the_others_are_never_touched(tool: Tool, nginx: Server) -> None:
    for _ in range(INSTANCES):
        start(nginx)
    reports = []

    def roll_all() -> None:
        for old in sorted(holders()):
            others = {master: cookies for master, cookies in holders().items() if master != old}
            options = ("--old-pid", old, "--stop-signal", nginx.stop_signal, "--listeners", nginx.listeners)
            reports.append(tool.ok("reload", PORTS[0], *options, "--", *nginx.command))
            now = holders()
            assert old not in now
            assert len(now) == INSTANCES
            assert {master: now.get(master) for master in others} == others

    with ResetCounter(PORTS) as counter:
        ledgers = under_load(roll_all, ROUNDS)
        assert counter.counts.rows() == ()
    assert_none_lost(ledgers)
    assert len(reports) == INSTANCES * ROUNDS
