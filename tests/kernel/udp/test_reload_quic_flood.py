"""A flood from spoofed sources while QUIC connections are handed over: none dies, and what was forgotten is reported.

1. Clients have connections with one of the old server's workers; the group is attached with a small map.
2. After the switch Initial packets and short headers from spoofed sources come, four times as many as fit into the map.
   A source sends two short headers, of which the second teaches an ID.
3. Each client asks once more, and then none does, so that the reload can end.
4. Each has an answer: who was forgotten goes to the same worker again, which the policy `hash` chooses by the address.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.check.quic_load import QuicClient
from reuseport_tool.kernel import quic_packets as quic
from reuseport_tool.kernel.raw_udp import RawUdp
from reuseport_tool.waiting import wait_until
from tests.kernel.udp.test_reload_udp import PORT, end_new_servers, endpoint
from tests.kernel.udp.test_reload_udp_flood import AT_ONCE, WAIT_S, all_is_read, spoofed, switched
from tests.tool import Tool

__all__ = ["end_new_servers"]

CLIENTS, ENTRIES = 600, 1024
SERVER = [sys.executable, "-m", "reuseport_tool.check.quic_server", "127.0.0.1", str(PORT)]
SPOOFED = 4 * ENTRIES

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


def flood(numbers: Iterable[int]) -> None:
    """Each from a source of its own: one Initial packet, or two short headers."""
    with RawUdp() as raw:
        for number in numbers:
            made_up = number.to_bytes(8, "big")
            payloads = [quic.initial(made_up)] if number % 2 else [quic.short(made_up), quic.short(made_up + b"2")]
            for payload in payloads:
                assert raw.send(spoofed(number, payload))
            if number % (AT_ONCE // 2) == 0:
                assert wait_until(all_is_read, WAIT_S)


def test_no_connection_dies_and_what_is_forgotten_is_said(
    tool: Tool,
    in_netns: None,
    spawn: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    old = spawn(*SERVER, stdout=subprocess.PIPE)
    assert old.stdout is not None
    assert old.stdout.readline() == "ready\n"
    tool.ok("attach", endpoint(), "--flows", "quic", "--flow-entries", ENTRIES)
    options = ("--flow-timeout", "8s", "--drain-timeout", "120s")
    with ExitStack() as stack:
        clients = Clients(stack)
        clients.ask_all()
        with switched(tool, tmp_path, options, SERVER, clients.ask_all) as done:
            assert not clients.dead
            flood(range(SPOOFED))
            clients.ask_all()
    [handed_over] = json.loads(done[0].out)["datagrams"]
    assert not clients.dead
    assert (handed_over["evicted"] > 0, handed_over["cut"], done[0].code) == (True, 0, 1), done[0].err
    assert "more than half full" in done[0].err
