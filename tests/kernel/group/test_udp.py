"""UDP groups, and TCP groups by the same tests: attach and detach move no flow and respect other people's programs."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from reuseport_tool.kernel import iterator, sockets
from reuseport_tool.models import Protocol
from tests.tool import Tool

SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
ADDRESSES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
PORT = 5300
FLOWS = 60

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")

Open = Callable[..., socket.socket]


@pytest.fixture
def opened(in_netns: None) -> Iterator[Open]:
    """Make a socket that joins the group of a protocol; closed after the test."""
    with ExitStack() as stack:

        def join(protocol: str, family: int = socket.AF_INET, address: str = "", port: int = PORT) -> socket.socket:
            sock = stack.enter_context(socket.socket(family, KINDS[protocol]))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address or ADDRESSES[socket.AddressFamily(family)], port))
            if protocol == "tcp":
                sock.listen(FLOWS * 4)
            return sock

        yield join


def endpoint(protocol: str, family: int = socket.AF_INET) -> str:
    address = ADDRESSES[socket.AddressFamily(family)]
    return f"{protocol}://{f'[{address}]' if ':' in address else address}:{PORT}"


def chosen(protocol: str, members: list[socket.socket], family: int = socket.AF_INET) -> dict[int, int]:
    """By source port: the number of the member that each flow reaches."""
    found: dict[int, int] = {}
    for port in range(20000, 20000 + FLOWS):
        with socket.socket(family, KINDS[protocol]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((ADDRESSES[socket.AddressFamily(family)], port))
            client.connect((ADDRESSES[socket.AddressFamily(family)], PORT))
            if protocol == "tcp":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                client.send(b"flow")
            readable, _, _ = select.select(members, [], [], 5)
            assert len(readable) == 1, f"the flow of port {port} reached {len(readable)} members"
            found[port] = members.index(readable[0])
            if protocol == "tcp":
                readable[0].accept()[0].close()
            else:
                readable[0].recv(16)
    return found


def runs_a_program(sock: socket.socket) -> bool:
    """Whether the group had a program; it has none afterwards."""
    with contextlib.suppress(FileNotFoundError):  # ENOENT
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
        return True
    return False


def attach_foreign(sock: socket.socket) -> None:
    """A classic BPF filter that always chooses socket 1 of the group."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 1))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))


@pytest.mark.parametrize("family", ADDRESSES)
@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize("count", [3, 7])
def test_attach_and_detach_move_no_flow(tool: Tool, opened: Open, protocol: str, family: int, count: int) -> None:
    members = [opened(protocol, family) for _ in range(count)]
    before = chosen(protocol, members, family)
    assert len(set(before.values())) == count
    tool.ok("attach", endpoint(protocol, family))
    assert chosen(protocol, members, family) == before
    assert tool.ok("detach", endpoint(protocol, family))["detached"][0]["result"] == "detached"
    assert chosen(protocol, members, family) == before
    assert not runs_a_program(members[0])


@pytest.mark.parametrize("family", ADDRESSES)
@pytest.mark.parametrize("protocol", KINDS)
def test_slots_are_in_the_kernels_order(tool: Tool, opened: Open, protocol: str, family: int) -> None:
    members = [opened(protocol, family) for _ in range(40)]
    members.pop(3).close()  # the last of socks[] takes its place
    members.insert(3, members.pop())
    tool.ok("attach", endpoint(protocol, family))
    slots = tool.ok("map", "show", endpoint(protocol, family))["maps"][0]["slots"]
    assert [slot["cookie"] for slot in slots] == [sockets.cookie(member.fileno()) for member in members]


def test_a_connected_socket_keeps_its_place(tool: Tool, opened: Open) -> None:
    """A socket that is bound to all addresses and connects stays in socks[]; the kernel goes on to the next one."""
    members = [opened("udp", address="0.0.0.0") for _ in range(4)]
    connected = members.pop()
    connected.connect(("127.0.0.1", 9))
    before = chosen("udp", members)
    tool.ok("attach", f"udp://0.0.0.0:{PORT}")
    assert chosen("udp", members) == before


@pytest.mark.parametrize("protocol", KINDS)
def test_a_foreign_program_is_refused_and_stays(tool: Tool, opened: Open, protocol: str) -> None:
    members = [opened(protocol) for _ in range(3)]
    attach_foreign(members[0])
    assert "not this tool's" in tool.fails(7, "attach", endpoint(protocol))["message"]
    shown = tool.ok("status", endpoint(protocol))["groups"][0]["program"]
    assert shown == {"id": 0, "name": "(classic BPF)", "policy": None}
    assert set(chosen(protocol, members).values()) == {1}


@pytest.mark.parametrize("protocol", KINDS)
def test_a_foreign_program_that_took_our_place_is_not_detached(tool: Tool, opened: Open, protocol: str) -> None:
    members = [opened(protocol) for _ in range(3)]
    tool.ok("attach", endpoint(protocol))
    attach_foreign(members[0])
    tool.fails(7, "detach", endpoint(protocol))
    assert set(chosen(protocol, members).values()) == {1}


@pytest.mark.parametrize("protocol", KINDS)
def test_sockets_that_came_after_the_attached_ones_are_stale(tool: Tool, opened: Open, protocol: str) -> None:
    members = [opened(protocol) for _ in range(2)]
    tool.ok("attach", endpoint(protocol))
    for member in members:
        member.close()
    fresh = [opened(protocol) for _ in range(2)]
    group = tool.ok("status", endpoint(protocol))["groups"][0]
    assert (group["program"], group["stale"]) == (None, True)
    assert {listener["flag"] for listener in group["listeners"]} == {"-"}
    assert not runs_a_program(fresh[0])
    assert tool.ok("detach", endpoint(protocol))["detached"][0]["result"] == "cleaned"


def test_status_lists_udp_groups_and_what_they_dropped(tool: Tool, opened: Open) -> None:
    small, _ = opened("udp"), opened("udp")
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(400):
            client.sendto(b"x" * 1000, ("127.0.0.1", PORT))
            client.sendto(b"x" * 1000, ("127.0.0.1", PORT + 1))
    [group] = tool.ok("status")["groups"]
    assert (group["endpoint"], group["program"], group["parts"]) == (endpoint("udp"), None, 1)
    assert sum(listener["drops"] > 0 for listener in group["listeners"]) >= 1
    assert sum(listener["receive_queue"] for listener in group["listeners"]) > 0
    assert "queue bytes" in tool.run("status", as_json=False).out


def test_a_group_that_split_is_attached_and_detached_as_a_whole(tool: Tool, opened: Open) -> None:
    """connect() of a socket that is bound to a specific address: the next socket joins it in another group."""
    members = [opened("udp") for _ in range(3)]
    members[0].connect(("127.0.0.1", 9))
    members.append(opened("udp"))
    parts = tool.ok("status", endpoint("udp"))["groups"][0]["parts"]
    tool.ok("attach", endpoint("udp"))
    with iterator.UdpListeners() as listeners:
        infos = listeners.read()
    programs = {infos[sockets.cookie(member.fileno())].program_id for member in members[1:]}
    assert len(programs) == 1
    assert None not in programs
    assert parts == len({infos[sockets.cookie(member.fileno())].group for member in members[1:]})
    tool.ok("detach", endpoint("udp"))
    assert not any(runs_a_program(member) for member in members)


def test_a_walk_tells_connected_sockets(opened: Open) -> None:
    member = opened("udp", address="0.0.0.0")
    member.connect(("127.0.0.1", 9))
    with iterator.listeners_of(Protocol.UDP) as listeners:
        assert isinstance(listeners, iterator.UdpListeners)
        info = listeners.read()[sockets.cookie(member.fileno())]
    assert (info.is_connected, info.remote_port, info.remote) == (True, 9, b"\x7f\0\0\1")
