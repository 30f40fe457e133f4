"""`attach --flows address`: datagrams of one address and port stay with the socket that got the first of them."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from reuseport_tool.kernel import sockets
from tests.tool import Tool

PORT = 5400
ADDRESSES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")

Member = Callable[..., socket.socket]


@pytest.fixture
def member(in_netns: None) -> Iterator[Member]:
    """A socket that joins the group; closed after the test."""
    with ExitStack() as stack:

        def join(family: int = socket.AF_INET) -> socket.socket:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((ADDRESSES[socket.AddressFamily(family)], PORT))
            return sock

        yield join


class Client:
    """Flows from ports of their own."""

    def __init__(self, stack: ExitStack, family: int, count: int) -> None:
        self._sockets = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in self._sockets:
            sock.connect((ADDRESSES[socket.AddressFamily(family)], PORT))

    def reach(self, members: list[socket.socket]) -> list[int]:
        """The number of the member that each flow's next datagram reaches."""
        found = []
        for sock in self._sockets:
            sock.send(b"datagram")
            readable, _, _ = select.select(members, [], [], 5)
            assert len(readable) == 1
            readable[0].recv(16)
            found.append(members.index(readable[0]))
        return found

    def ports(self) -> set[int]:
        return {sock.getsockname()[1] for sock in self._sockets}


def endpoint(family: int = socket.AF_INET) -> str:
    return f"udp://127.0.0.1:{PORT}" if family == socket.AF_INET else f"udp://[::1]:{PORT}"


def switch(tool: Tool, at: str, members: list[socket.socket]) -> None:
    """Make a generation of these sockets, and switch to it."""
    number = max(entry["generation"] for entry in tool.ok("map", "show", at)["maps"]) + 1
    for sock in members:
        tool.ok("map", "add", at, "--generation", number, "--cookie", sockets.cookie(sock.fileno()))
    tool.ok("map", "switch", at, number)


def table(tool: Tool, at: str) -> dict:  # type: ignore[type-arg]
    return tool.ok("status", at)["groups"][0]["flows"]


@pytest.mark.parametrize("family", ADDRESSES)
def test_flows_stay_over_a_switch_and_new_ones_go_to_the_new_generation(
    tool: Tool, member: Member, family: int
) -> None:
    old = [member(family) for _ in range(3)]
    with ExitStack() as stack:
        before = Client(stack, family, 30)
        first = before.reach(old)
        tool.ok("attach", endpoint(family), "--flows", "address")
        assert before.reach(old) == first
        new = [member(family) for _ in range(2)]
        switch(tool, endpoint(family), new)
        assert before.reach(old + new) == first
        after = Client(stack, family, 30)
        assert set(after.reach(old + new)) <= {3, 4}
        found = table(tool, endpoint(family))
        assert (found["mode"], found["flows"]) == ("address", 60)
        assert found["counters"] == {"new": 60, "kept": 30, "gone": 0, "learnt": 0, "moved": 0, "older": 0}
        listed = tool.ok("flows", endpoint(family), "--generation", 1)["flows"]
        assert {int(flow["source"].rpartition(":")[2]) for flow in listed} == before.ports()
        assert {flow["destination"] for flow in listed} == {ADDRESSES[socket.AddressFamily(family)]}
        assert all(flow["idle_s"] < 60 for flow in listed)
        for sock in old:
            sock.close()
        assert set(before.reach(new)) <= {0, 1}
        assert table(tool, endpoint(family))["counters"]["gone"] == 30


def test_without_flows_a_switch_moves_all(tool: Tool, member: Member) -> None:
    old = [member() for _ in range(2)]
    with ExitStack() as stack:
        client = Client(stack, socket.AF_INET, 20)
        tool.ok("attach", endpoint())
        client.reach(old)
        new = [member()]
        switch(tool, endpoint(), new)
        assert set(client.reach(old + new)) == {2}
    assert table(tool, endpoint()) is None
    assert "keeps flows" in tool.fails(6, "flows", endpoint())["message"]


def test_a_group_begins_and_stops_to_keep_flows(tool: Tool, member: Member) -> None:
    members = [member() for _ in range(2)]
    with ExitStack() as stack:
        client = Client(stack, socket.AF_INET, 10)
        assert tool.ok("attach", endpoint(), "--policy", "source-ip")["attached"][0]["result"] == "attached"
        first = client.reach(members)
        replaced = tool.ok("attach", endpoint(), "--flows", "address", "--flow-entries", 2048)["attached"][0]
        assert (replaced["result"], replaced["program"]["policy"]) == ("replaced", "source-ip")
        assert client.reach(members) == first
        assert table(tool, endpoint())["flows"] == 10
        assert tool.ok("attach", endpoint(), "--policy", "hash")["attached"][0]["result"] == "replaced"
        assert client.reach(members) == first  # recorded, so that another policy does not move them
        assert tool.ok("attach", endpoint())["attached"][0]["result"] == "unchanged"
        assert tool.ok("attach", endpoint(), "--flows", "none")["attached"][0]["result"] == "replaced"
        assert table(tool, endpoint()) is None
        client.reach(members)
        assert tool.ok("detach", endpoint())["detached"][0]["result"] == "detached"


def test_a_crowded_map_is_a_problem(tool: Tool, member: Member) -> None:
    members = [member()]
    tool.ok("attach", endpoint(), "--flows", "address", "--flow-entries", 1024)
    with ExitStack() as stack:
        Client(stack, socket.AF_INET, 600).reach(members)
    assert [problem["kind"] for problem in tool.ok("status", endpoint())["groups"][0]["problems"]] == ["crowded"]
    assert tool.run("status", endpoint(), "--check").code == 1


@pytest.mark.parametrize(
    "arguments",
    [("tcp://127.0.0.1:80", "--flows", "address"), (endpoint(), "--flow-entries", 2048)],
)
def test_what_makes_no_sense_is_refused(tool: Tool, member: Member, arguments: tuple[object, ...]) -> None:
    member()
    tool.fails(2, "attach", *arguments)
