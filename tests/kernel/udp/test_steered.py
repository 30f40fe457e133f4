"""What the tool sends to ask a new server reaches that server, whatever is recorded for the port that it comes from.

A port that a client has left is used again: by the tool's own socket, too. The old server would answer for the new one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.group import places
from reuseport_tool.group.choice import SHARES
from reuseport_tool.group.state import State
from reuseport_tool.kernel import quic_packets as quic
from reuseport_tool.kernel import sockets
from reuseport_tool.models import FlowMode, parse_endpoint
from tests.kernel.udp import test_reload_udp
from tests.kernel.udp.test_quic import Lab, lab  # noqa: F401
from tests.kernel.udp.test_reload_udp import end_new_servers, reload, server  # noqa: F401
from tests.tool import Tool

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")
PORTS = (40000, 40003)


def opened(at: Lab) -> State:
    assert at.tool.bpffs is not None
    return State.open(places.group_folder(at.tool.bpffs, parse_endpoint(at.endpoint)))


@pytest.mark.parametrize(("family", "mode"), [("ipv4", FlowMode.ADDRESS), ("ipv6", FlowMode.QUIC)])
def test_a_steered_datagram_belongs_to_no_flow(lab: Callable[[str], Lab], family: str, mode: FlowMode) -> None:  # noqa: F811
    at = lab(family)
    old = at.join()
    at.tool.ok("attach", at.endpoint, "--flows", mode)
    client, _, chosen = at.connect()
    new, payload = at.join(), quic.short(chosen)
    address, port = client.getsockname()[:2]
    at.tool.ok("map", "add", at.endpoint, "--generation", 2, "--cookie", sockets.cookie(new.fileno()))
    before = at.table()["flows"]
    with opened(at) as state:
        for share in (0, SHARES):
            state.choice.share(2, share)
            with state.choice.steered(address, port):
                assert at.reach(client, payload) is new
            assert at.reach(client, payload) is old
        state.choice.switch(2)
        with state.choice.steered(address, port):
            assert at.reach(client, payload) is new
        assert at.reach(client, payload) is old
        assert state.counters().steered == 2
    assert at.table()["flows"] == before


@pytest.mark.parametrize(("mode", "options"), [(FlowMode.ADDRESS, ()), (FlowMode.QUIC, ("--canary", "50"))])
def test_the_old_server_does_not_answer_for_the_new_one(
    tool: Tool,
    server: test_reload_udp.Start,  # noqa: F811
    mode: FlowMode,
    options: tuple[str, ...],
) -> None:
    """Clients have used every port that the tool can get. The new server answers nothing."""
    at = test_reload_udp.endpoint()
    server("old")
    tool.ok("attach", at, "--flows", mode)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("{} {}".format(*PORTS))
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(4)]
        for client, port in zip(clients, range(PORTS[0], PORTS[1] + 1), strict=True):
            client.bind(("127.0.0.1", port))
            client.settimeout(test_reload_udp.ANSWER_S)
            client.sendto(quic.initial(b"12345678"), ("127.0.0.1", test_reload_udp.PORT))
            assert client.recv(2048).startswith(b"old")
    asking = ("--no-probe", "--health-datagram", quic.initial(b"12345678").hex(), "--health-timeout", "1s")
    code, report, err = reload(tool, at, *asking, *options, "--step", "0.1s", new=("--deaf",))
    assert (code, report["result"]) == (8, "rolled-back"), err
    assert "does not answer the health datagram" in err
