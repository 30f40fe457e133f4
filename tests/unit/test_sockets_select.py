"""Which sockets of a walk match, and how they are shown. The walk is made up; nothing asks the kernel."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from reuseport_tool.errors import NotFound, UsageError
from reuseport_tool.group.endpoint_sockets import EndpointSockets
from reuseport_tool.kernel import bpffs, links, processes
from reuseport_tool.kernel.abi import NO_IDLE, SocketRecord, TcpState
from reuseport_tool.models import Endpoint, Protocol, SocketState, parse_endpoint
from reuseport_tool.sockets import select
from reuseport_tool.sockets.select import Filter
from reuseport_tool.sockets.shown import Moment


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed.ljust(16, b"\0")


def record(local: str = "10.0.0.1", remote: str | None = None, **fields: Any) -> SocketRecord:
    """A listener on port 80; with a remote address a connection."""
    usual = {
        "cookie": 77,
        "inode": 900,
        "synack_us": 0,
        "local": packed(local),
        "remote": packed(remote) if remote else bytes(16),
        "local_port": 80,
        "remote_port": socket.htons(4000) if remote else 0,
        "family": socket.AF_INET6 if ":" in local else socket.AF_INET,
        "state": TcpState.ESTABLISHED if remote else TcpState.LISTEN,
        "device": 0,
        "unused": 0,
        "uid": 33,
        "idle": NO_IDLE,
        "receive_queue": 3,
        "send_queue": 511,
    }
    return SocketRecord(**{**usual, **fields})


NOBODY = 1 << 22  # no process has it: the highest pid_max of the kernel
LISTENER = record()
ANY = record("0.0.0.0", cookie=78)
CONNECTION = record("10.0.0.1", "10.0.0.2", cookie=79, inode=901)
ELSEWHERE = record("10.0.0.9", "10.0.0.2", cookie=80, inode=0)
MAPPED = record("::ffff:10.0.0.1", "::ffff:10.0.0.2", cookie=81)
ALL = [LISTENER, ANY, CONNECTION, ELSEWHERE, MAPPED]


@pytest.mark.parametrize(
    ("endpoint", "cookies"),
    [
        ("80", {77, 78, 79, 80, 81}),
        ("81", set()),
        ("10.0.0.1:80", {77, 79, 81}),
        ("10.0.0.9:80", {80}),
        ("[::ffff:10.0.0.1]:80", {77, 79, 81}),
        # Connections of the wildcard's listeners: to no address that another socket is bound to by name.
        ("0.0.0.0:80", {78, 80}),
    ],
)
def test_an_endpoint_covers(endpoint: str, cookies: set[int]) -> None:
    place = EndpointSockets(parse_endpoint(endpoint), ALL)
    assert {raw.cookie for raw in ALL if place.covers(raw)} == cookies


def test_a_device_is_one_that_exists() -> None:
    with pytest.raises(NotFound, match="no network device 'nosuch0'"):
        EndpointSockets(parse_endpoint("10.0.0.1%nosuch0:80"), ALL)
    index = socket.if_nametoindex("lo")
    place = EndpointSockets(parse_endpoint("10.0.0.1%lo:80"), ALL)
    assert not place.covers(LISTENER)
    assert place.covers(LISTENER._replace(device=index))


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> dict[Protocol, list[SocketRecord]]:
    """No pins; the process NOBODY holds inode 900."""

    def nowhere(_: object) -> None:
        raise NotFound("no bpffs")

    monkeypatch.setattr(bpffs, "find", nowhere)
    monkeypatch.setattr(processes, "pids_by_inode", lambda: {900: frozenset({NOBODY})})
    monkeypatch.setattr(processes, "topmost", lambda pids: set(pids))
    monkeypatch.setattr(processes, "command", lambda _pid: "nginx")
    return {Protocol.TCP: ALL, Protocol.UDP: []}


def matching(walk: dict[Protocol, list[SocketRecord]], wanted: Filter) -> set[int]:
    return {found.raw.cookie for found in select.select(wanted, walk, None)}


@pytest.mark.parametrize(
    ("wanted", "cookies"),
    [
        (Filter(), {77, 78, 79, 80, 81}),
        (Filter(states=(SocketState.LISTEN,)), {77, 78}),
        (Filter(cookies=(79, 1)), {79}),
        (Filter(pids=(NOBODY,)), {77, 78, 81}),
        (Filter(pids=(1,)), set()),
        (Filter(endpoint=parse_endpoint("10.0.0.1:80"), states=(SocketState.ESTABLISHED,)), {79, 81}),
        (Filter(idle_s=1.0), set()),
    ],
    ids=str,
)
def test_a_filter(walk: dict[Protocol, list[SocketRecord]], wanted: Filter, cookies: set[int]) -> None:
    assert matching(walk, wanted) == cookies


def test_idle_and_age(walk: dict[Protocol, list[SocketRecord]]) -> None:
    moment = Moment(monotonic_us=10e6, hertz=100)
    assert moment.idle_s(250) == 2.5
    assert moment.idle_s(CONNECTION.idle) is None
    assert moment.age_s(4_000_000) == 6.0
    assert moment.at_least_s(CONNECTION._replace(idle=250)) == 2.5
    assert moment.at_least_s(CONNECTION._replace(idle=250, synack_us=4_000_000)) == 6.0
    quiet = CONNECTION._replace(idle=1 << 30, cookie=90)
    assert matching({Protocol.TCP: [quiet, CONNECTION], Protocol.UDP: []}, Filter(idle_s=60)) == {90}
    assert matching({Protocol.TCP: [quiet, CONNECTION], Protocol.UDP: []}, Filter(older_than_s=60)) == {90}


def test_how_a_listener_and_a_connection_are_shown(walk: dict[Protocol, list[SocketRecord]]) -> None:
    shown = {found.raw.cookie: found.shown for found in select.select(Filter(), walk, None)}
    assert (shown[77].local, shown[77].remote, shown[77].state) == ("10.0.0.1:80", None, "listen")
    assert (shown[77].accept_queue, shown[77].backlog, shown[77].receive_queue) == (3, 511, None)
    assert (shown[77].pid, shown[77].command) == (NOBODY, "nginx")
    assert (shown[79].remote, shown[79].receive_queue, shown[79].accept_queue) == ("10.0.0.2:4000", 3, None)
    assert (shown[80].pid, shown[80].inode) == (None, None)
    assert shown[81].local == "[::ffff:10.0.0.1]:80"


def test_the_device_is_shown_by_name(walk: dict[Protocol, list[SocketRecord]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "device_name", lambda index: "eth0" if index == 4 else None)
    (found,) = select.select(Filter(), {Protocol.TCP: [LISTENER._replace(device=4)], Protocol.UDP: []}, None)
    assert found.shown.local == "10.0.0.1%eth0:80"


def test_a_generation_needs_pins(walk: dict[Protocol, list[SocketRecord]]) -> None:
    with pytest.raises(NotFound):
        matching(walk, Filter(generation=1, endpoint=parse_endpoint("80")))


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(generation=1),
        Filter(endpoint=parse_endpoint("80"), protocol=Protocol.UDP),
        Filter(states=(SocketState.LISTEN,), protocol=Protocol.UDP),
        Filter(states=(SocketState.UNCONNECTED,), protocol=Protocol.TCP),
    ],
    ids=str,
)
def test_a_filter_that_contradicts_itself(wanted: Filter) -> None:
    with pytest.raises(UsageError):
        wanted.check()


def test_the_protocols_that_can_match() -> None:
    assert Filter().protocols == (Protocol.TCP, Protocol.UDP)
    assert Filter(states=(SocketState.UNCONNECTED,)).protocols == (Protocol.UDP,)
    assert Filter(states=(SocketState.LISTEN,)).protocols == (Protocol.TCP,)
    assert Filter(endpoint=Endpoint(protocol=Protocol.UDP, address=None, port=53)).protocols == (Protocol.UDP,)
    assert Filter(states=(SocketState.LISTEN,)).state_mask() == 1 << TcpState.LISTEN
    assert Filter().is_empty
