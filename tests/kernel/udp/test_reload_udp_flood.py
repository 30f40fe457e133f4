"""A flood from spoofed sources over a map of flows that is too small: whoever loses its server is in the report.

1. Clients have flows with the old server; the group is attached with a small map.
2. After the switch spoofed datagrams come, each of a flow of its own, while every client goes on in turn.
3. The flood ends, each client asks once more, and then none does, so that the reload can end.
4. A client that was answered by the new server meanwhile has lost its flow. There are as many as the report says.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from reuseport_tool.kernel.raw_udp import Datagram, RawUdp
from reuseport_tool.waiting import wait_until
from tests.kernel.udp.test_reload_udp import PORT, SERVER, Start, end_new_servers, endpoint, server
from tests.tool import Done, Tool

__all__ = ["end_new_servers", "server"]

CLIENTS, ENTRIES = 800, 1024
MOST = 50_000
AT_ONCE = 40  # spoofed datagrams until the servers have read them: no receive buffer overflows
WAIT_S = 60.0

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")

Ask = Callable[[], object]


class Clients:
    """One flow each. `changed` are those that the new server has answered."""

    def __init__(self, stack: ExitStack) -> None:
        self._sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(CLIENTS)]
        for sock in self._sockets:
            sock.settimeout(WAIT_S)
            sock.connect(("127.0.0.1", PORT))
        self.changed: set[int] = set()

    def ask(self, number: int) -> None:
        self._sockets[number].send(b"%d" % number)
        if self._sockets[number].recv(64).split()[0] == b"new":
            self.changed.add(number)

    def ask_all(self) -> None:
        for number in range(CLIENTS):
            self.ask(number)


def all_is_read() -> bool:
    """Whether the queues of the servers' sockets are empty."""
    rows = [line.split() for line in Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]]
    return all(int(row[4].split(":")[1], 16) == 0 for row in rows if int(row[1].split(":")[1], 16) == PORT)


def spoofed(number: int, payload: bytes) -> Datagram:
    return Datagram(
        source=ipaddress.ip_address("127.1.0.0") + number,
        source_port=4000,
        destination=ipaddress.ip_address("127.0.0.1"),
        port=PORT,
        scope=0,
        payload=payload,
    )


def flood(clients: Clients, least: int) -> None:
    """Until so many clients have another server. Each is asked now and then: a flow that is used is kept longer."""
    with RawUdp() as raw:
        for number in range(MOST):
            assert raw.send(spoofed(number, b"flood"))
            if number % AT_ONCE == 0:
                assert wait_until(all_is_read, WAIT_S)
            if number % ENTRIES == ENTRIES - 1:
                clients.ask_all()
            if len(clients.changed) >= least:
                break


@contextmanager
def switched(tool: Tool, folder: Path, options: Sequence[str], new: Sequence[str], ask: Ask) -> Iterator[list[Done]]:
    """A reload that has switched, until when `ask` is called. It has ended, and is in the list, when the block has."""
    told = folder / "switched"
    done: list[Done] = []
    command = ("reload", endpoint(), *options, "--on-switch", f"touch {told}", "--output", "/dev/null", "--", *new)
    thread = threading.Thread(target=lambda: done.append(tool.run(*command, timeout_s=200)))
    thread.start()
    while not told.exists():  # a flow that is silent for --flow-timeout counts as ended
        assert thread.is_alive()
        ask()
    yield done
    thread.join()


def test_the_report_has_every_client_that_lost_its_server(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("old")
    tool.ok("attach", endpoint(), "--flows", "address", "--flow-entries", ENTRIES)
    options = ("--flow-timeout", "5s", "--drain-timeout", "120s")
    with ExitStack() as stack:
        clients = Clients(stack)
        clients.ask_all()
        with switched(tool, tmp_path, options, [*SERVER, "new"], clients.ask_all) as done:
            assert not clients.changed
            flood(clients, 5)
    [handed_over] = json.loads(done[0].out)["datagrams"]
    assert (handed_over["cut"], handed_over["evicted"]) == (0, len(clients.changed)), done[0].err
    assert clients.changed
    assert done[0].code == 1
