"""Restart a server under load, plainly and by the tool: what the demo and the tests share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reuseport_tool.bench.load import Ledger
from reuseport_tool.errors import NotFound
from reuseport_tool.kernel import commands, libc, processes
from reuseport_tool.kernel.processes import Process
from reuseport_tool.waiting import wait_until
from tests.servers import servers
from tests.servers.servers import Server
from tests.tool import Tool

_DEADLINE_S = 30.0


@contextlib.contextmanager
def own_bpffs() -> Iterator[Path]:
    """A bpffs whose pins die with it."""
    with tempfile.TemporaryDirectory() as folder:
        libc.mount("bpf", folder, "bpf")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """What is started inside runs on one CPU.

    For servers that close listeners while handshakes still go to them, and for their clients, because of a race in the
    kernel that nothing attached to the group can help: if a listener closes on one CPU between two looks at its state
    on another, by tcp_v4_rcv() and by inet_csk_reqsk_queue_add(), the connection whose handshake ends there is reset
    (inet_child_forget() below inet_csk_complete_hashdance(); seen by `perf record -g -e tcp:tcp_send_reset`, once in
    some hundred closed listeners). A reload does not close listeners to which handshakes still go.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu()})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def cpu() -> int:
    """The CPU of on_one_cpu()."""
    return min(os.sched_getaffinity(0))


def assert_resets(ledger: Ledger) -> None:
    """The arm without the tool: it answers, and it loses connections."""
    print(ledger)
    assert ledger.answered
    assert ledger.reset


def start(server: Server) -> None:
    """Start a server that end_all() will end, and wait until it answers."""
    start_listening(server)
    servers.await_answer()


def start_listening(server: Server) -> None:
    """As start(), also for a server that does not speak HTTP."""
    subprocess.Popen(server.command, start_new_session=True)
    servers.await_listeners(server.listeners)


def plainly(server: Server) -> None:
    """As a deploy script does it: the new server first, then the signal for the old one."""
    old = servers.listeners()
    cookies = frozenset(member.cookie for member in old)
    owners = owners_of(old)
    subprocess.Popen(server.command, start_new_session=True)
    servers.await_listeners(server.listeners, besides=cookies)
    commands.terminate(owners, signal.Signals[f"SIG{server.stop_signal}"])
    await_gone(cookies)


def by_the_tool(tool: Tool, server: Server) -> Any:
    """The tool's report."""
    options = ("--stop-signal", server.stop_signal, "--listeners", server.listeners)
    return tool.ok("reload", servers.PORT, *options, "--", *server.command)


def owners_of_port(port: int, besides: int) -> int:
    """The one master of the listeners on a port that is not the process `besides`."""
    (owner,) = set(owners_of(servers.listeners(port))) - {besides}
    return owner


def owners_of(members: list[servers.Member]) -> list[int]:
    return processes.topmost({holder.pid for member in members for holder in member.holders})


def await_gone(cookies: frozenset[int]) -> None:
    """Wait until listeners are closed."""
    assert wait_until(lambda: not cookies & {member.cookie for member in servers.listeners()}, _DEADLINE_S)


def await_queue(length: int, staying: int = 0) -> None:
    """Wait until so many connections wait in accept queues, which is when a restart hurts.

    Args:
        staying: so many listeners stay, whichever they are: the longest queues do not count.
    """

    def queued() -> bool:
        queues = sorted((member.socket.accept_queue or 0 for member in servers.listeners()), reverse=True)
        return sum(queues[staying:]) >= length

    assert wait_until(queued, _DEADLINE_S, poll_s=0.002), f"no {length} connections queue"


def await_load(length: int) -> None:
    """Wait until so many more connections have come, and so many wait: what answers them before the next restart.

    Without the first, a restart that is quicker than the server finds the connections of the one before.
    """
    await_traffic(length)
    await_queue(length)


def await_traffic(connections: int) -> None:
    """Wait until so many more connections were opened to servers of this namespace."""
    before = _passive_opens()
    assert wait_until(lambda: _passive_opens() - before >= connections, _DEADLINE_S), f"no {connections} came"


def _passive_opens() -> int:
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("PassiveOpens")])


def end_all() -> None:
    """End whatever listens in this namespace: the masters, then what had a master and listens still."""

    def ended() -> bool:
        for pid in owners_of(servers.all_listeners()):
            with contextlib.suppress(NotFound), contextlib.closing(Process(pid)) as process:
                process.signal(signal.SIGTERM)
                if not process.ended(timeout_s=10):
                    process.signal(signal.SIGKILL)
        return not servers.all_listeners()

    assert wait_until(ended, _DEADLINE_S)
