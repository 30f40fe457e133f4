"""A flood from spoofed sources while QUIC connections are handed over: none dies that the report does not tell of.

1. Clients have connections with one of the old server's workers; the group is attached with a small map.
2. After the switch Initial packets and short headers from spoofed sources come, while every client asks in turn.
   A source sends two short headers, of which the second teaches an ID.
3. The flood ends, each client asks once more, and then none does, so that the reload can end.
4. A client whose datagrams another worker got has no answer. There are at most as many as the report calls evicted.

With the policy `hash` a connection that was forgotten goes to its worker again, because that is chosen by its address.
With `round-robin` it goes to any worker: that is the arm in which connections die.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.check.quic_load import QuicClient
from reuseport_tool.kernel import quic_packets as quic
from reuseport_tool.kernel.raw_udp import Datagram, RawUdp
from reuseport_tool.waiting import wait_until
from tests.kernel.udp.test_reload_udp import PORT, end_new_servers, endpoint
from tests.kernel.udp.test_reload_udp_flood import AT_ONCE, WAIT_S, all_is_read
from tests.tool import Done, Tool

__all__ = ["end_new_servers"]

CLIENTS, ENTRIES = 700, 1024
SERVER = [sys.executable, "-m", "reuseport_tool.check.quic_server", "127.0.0.1", str(PORT)]
MOST = 30_000

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")


class Clients:
    """One connection each. `dead` are those that have asked and were not answered."""

    def __init__(self, stack: ExitStack) -> None:
        self._clients = {number: stack.enter_context(QuicClient("127.0.0.1", PORT)) for number in range(CLIENTS)}
        self.dead: set[int] = set()

    def ask_all(self) -> None:
        """Those that live. Each worker answers what it has read, in order: no answer after that is none."""
        for number in self._clients.keys() - self.dead:
            if not self._clients[number].ask(0.2) and not self._answers_when_all_is_read(number):
                self.dead.add(number)

    def _answers_when_all_is_read(self, number: int) -> bool:
        assert wait_until(all_is_read, WAIT_S)
        return self._clients[number].ask(2.0)


def spoofed(number: int, payload: bytes) -> Datagram:
    return Datagram(
        source=ipaddress.ip_address("127.1.0.0") + number,
        source_port=4000,
        destination=ipaddress.ip_address("127.0.0.1"),
        port=PORT,
        scope=0,
        payload=payload,
    )


def flood(clients: Clients, most: int) -> None:
    """From so many sources, or until a client is dead."""
    with RawUdp() as raw:
        for number in range(most):
            made_up = number.to_bytes(8, "big")
            payloads = [quic.initial(made_up)] if number % 2 else [quic.short(made_up), quic.short(made_up + b"2")]
            for payload in payloads:
                assert raw.send(spoofed(number, payload))
            if number % (AT_ONCE // 2) == 0:
                assert wait_until(all_is_read, WAIT_S)
            if number % ENTRIES == ENTRIES - 1:
                clients.ask_all()
            if clients.dead:
                break


@pytest.mark.parametrize(("policy", "dies"), [("hash", False), ("round-robin", True)])
def test_no_connection_dies_that_the_report_does_not_tell_of(
    tool: Tool,
    in_netns: None,
    spawn: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    policy: str,
    dies: bool,
) -> None:
    old = spawn(*SERVER, stdout=subprocess.PIPE)
    assert old.stdout is not None
    assert old.stdout.readline() == "ready\n"
    tool.ok("attach", endpoint(), "--flows", "quic", "--flow-entries", ENTRIES, "--policy", policy)
    switched = tmp_path / "switched"
    options = ("--flow-timeout", "5s", "--drain-timeout", "120s", "--on-switch", f"touch {switched}")
    done: list[Done] = []
    command = ("reload", endpoint(), *options, "--output", "/dev/null", "--", *SERVER)
    with ExitStack() as stack:
        clients = Clients(stack)
        clients.ask_all()
        thread = threading.Thread(target=lambda: done.append(tool.run(*command, timeout_s=200)))
        thread.start()
        while not switched.exists():  # a flow that is silent for --flow-timeout counts as ended
            assert thread.is_alive()
            clients.ask_all()
        assert not clients.dead
        flood(clients, MOST if dies else 2 * ENTRIES)
        clients.ask_all()
        thread.join()
    [handed_over] = json.loads(done[0].out)["datagrams"]
    assert len(clients.dead) <= handed_over["evicted"], done[0].err
    assert bool(clients.dead) == dies
    assert "more than half full" in done[0].err
