"""Datagrams that are read from one socket and sent again reach the next one as they were."""

from __future__ import annotations

import ipaddress
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pyroute2 import IPRoute

from reuseport_tool.kernel import links, sysctl
from reuseport_tool.kernel.raw_udp import Datagram, RawUdp, receive_buffer, set_receive_buffer, take

PORT = 5600
WAIT_S = 5.0
NEAR = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.fixture
def stack(in_netns: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def server(stack: ExitStack, address: str, device: str | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    scope = socket.if_nametoindex("near") if address.startswith("fe80") else 0
    sock.bind((address, PORT, 0, scope) if ":" in address else (address, PORT))
    return sock


def send(stack: ExitStack, to: str, payloads: list[bytes], **how: Any) -> None:
    """By a client of this machine, or as if by one of the network behind the device `near`."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    if how.get("device"):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, how["device"].encode())
    scope = socket.if_nametoindex("near") if to.startswith("fe80") else 0
    for payload in payloads:
        client.sendto(payload, (to, PORT, 0, scope) if ":" in to else (to, PORT))


def received(sock: socket.socket, count: int) -> list[Any]:
    """Payload, source and destination of so many datagrams."""
    found = []
    for _ in range(count):
        assert select.select([sock], [], [], WAIT_S)[0], f"{len(found)} of {count} came"
        payload, notes, _, source = sock.recvmsg(65535, 256)
        found.append((payload, source, [data for _, _, data in notes]))
    return found


def ask_for_destination(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, 8, 1)


@pytest.mark.parametrize(
    ("bound", "to", "device"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("0.0.0.0", "127.0.0.1", None),
        ("0.0.0.0", NEAR[4], None),
        (NEAR[4], NEAR[4], "near"),
        ("::1", "::1", None),
        ("::", "::1", None),
        ("::", "127.0.0.1", None),
        (NEAR[6], NEAR[6], "near"),
        ("link-local", "link-local", None),
        ("link-local", "link-local", "near"),
    ],
)
def test_a_datagram_comes_again_as_it_was(stack: ExitStack, bound: str, to: str, device: str | None) -> None:
    links.veth("near", "far")
    for version, prefix in ((4, 24), (6, 64)):
        links.give_address("near", NEAR[version], prefix)
    links.give_address("near", "fe80::1234", 64)
    bound, to = (address.replace("link-local", "fe80::1234") for address in (bound, to))
    payloads = [b"", b"x", b"datagram", bytes(range(256)) * 4, b"y" * 65000]
    first = server(stack, bound, device)
    # One that sees them as they come, whose notes are to be the same.
    ask_for_destination(first)
    send(stack, to, payloads, device=device)
    as_they_came = received(first, len(payloads))
    ports = {source[1] for _, source, _ in as_they_came}
    send(stack, to, payloads, device=device)
    held = take(first.fileno(), 100, 1 << 20)
    assert [each.payload for each in held] == payloads
    first.close()
    second = server(stack, bound, device)
    ask_for_destination(second)
    with RawUdp(device) as raw:
        assert all(raw.send(each) for each in held)
    again = received(second, len(payloads))
    other = {source[1] for _, source, _ in again}
    assert (len(ports), len(other)) == (1, 1)
    assert [_without_port(each) for each in again] == [_without_port(each) for each in as_they_came]


def _without_port(entry: Any) -> Any:
    payload, (address, _port, *scope), notes = entry
    return payload, address, scope, notes


def _datagram(source: str, destination: str, payload: bytes = b"payload") -> Datagram:
    return Datagram(
        source=ipaddress.ip_address(source),
        source_port=4321,
        destination=ipaddress.ip_address(destination),
        port=PORT,
        scope=0,
        payload=payload,
    )


@pytest.mark.parametrize(("bound", "source"), [("0.0.0.0", "198.51.100.7"), ("::", "2001:db8:ffff::7")])
def test_the_source_may_be_anywhere(stack: ExitStack, bound: str, source: str) -> None:
    """Also where the kernel drops packets of sources that it has no route to on that device."""
    links.veth("near", "far")
    for version, prefix in ((4, 24), (6, 64)):
        links.give_address("near", NEAR[version], prefix)
    for device in ("all", "lo", "near"):
        sysctl.write(f"net.ipv4.conf.{device}.rp_filter", "1")
    first = server(stack, bound)
    to = NEAR[6 if ":" in bound else 4]
    with RawUdp() as raw:
        assert raw.send(_datagram(source, to))
        [(payload, came_from, _)] = received(first, 1)
        assert (payload, *came_from[:2]) == (b"payload", source, 4321)


@pytest.mark.parametrize(
    "destination", ["203.0.113.9", "192.0.2.2", "239.1.1.1", "192.0.2.255", "255.255.255.255", "2001:db8::9", "ff02::1"]
)
def test_nothing_leaves_the_machine(stack: ExitStack, destination: str) -> None:
    links.veth("near", "far")
    for version, prefix in ((4, 24), (6, 64)):
        links.give_address("near", NEAR[version], prefix)
    with IPRoute() as route:
        route.route("add", dst="default", gateway="192.0.2.254")
    watcher = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)))
    watcher.bind(("near", 0))
    sent = stack.enter_context(RawUdp())
    assert not sent.send(_datagram("192.0.2.1" if "." in destination else "2001:db8::1", destination, b"to nobody"))
    send(stack, "192.0.2.1", [b""])  # fence
    while select.select([watcher], [], [], 0.1)[0]:
        assert b"to nobody" not in watcher.recv(65535)


def test_datagrams_that_the_kernel_merged_are_taken_apart(stack: ExitStack) -> None:
    first = server(stack, "127.0.0.1")
    first.setsockopt(socket.IPPROTO_UDP, 104, 1)  # UDP_GRO
    client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.setsockopt(socket.IPPROTO_UDP, 103, 100)  # UDP_SEGMENT
    client.sendto(b"a" * 100 + b"b" * 100 + b"c" * 30, ("127.0.0.1", PORT))
    assert [each.payload for each in take(first.fileno(), 100, 1 << 20)] == [b"a" * 100, b"b" * 100, b"c" * 30]


def test_the_receive_buffer_is_as_it_was(stack: ExitStack) -> None:
    first = server(stack, "127.0.0.1")
    before = receive_buffer(first.fileno())
    set_receive_buffer(first.fileno(), 32 << 20)
    assert receive_buffer(first.fileno()) == 32 << 20
    set_receive_buffer(first.fileno(), before)
    assert receive_buffer(first.fileno()) == before
