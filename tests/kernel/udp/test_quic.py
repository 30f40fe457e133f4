"""`attach --flows quic`: a connection stays with its socket when its client's address changes.

Crafted datagrams play both sides: a member of the group answers with a long header, from which the program learns how
long the server's connection IDs are, and the client uses that ID from then on.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from reuseport_tool.kernel import cgroup, sockets
from reuseport_tool.kernel import quic_packets as quic
from tests.tool import Tool

# Of this worker alone: the program reads the answers of all network namespaces, and tests that run at the same time may
# have the same addresses and client ports.
PORT = 5450 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1", "mapped": "::ffff:127.0.0.1"}
WAIT_S = 5.0
_numbers = itertools.count(1)

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")


def connection_id(length: int) -> bytes:
    """One that no other test used."""
    return next(_numbers).to_bytes(8, "big").rjust(length, b"\x11")[-length:] if length else b""


class Lab:
    """Members of a group and clients; closed at the end."""

    def __init__(self, tool: Tool, stack: ExitStack, family: str) -> None:
        self.tool = tool
        self._stack = stack
        self._is_ipv6 = family != "ipv4"
        self._address = "::" if family == "mapped" else ADDRESSES[family]
        self._target = "127.0.0.1" if family == "mapped" else self._address
        self.endpoint = f"udp://[{self._address}]:{PORT}" if self._is_ipv6 else f"udp://{self._address}:{PORT}"
        self.members: list[socket.socket] = []

    def join(self) -> socket.socket:
        """Another member of the group."""
        sock = self._stack.enter_context(
            socket.socket(socket.AF_INET6 if self._is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((self._address, PORT))
        self.members.append(sock)
        return sock

    def client(self) -> socket.socket:
        """A client with a port of its own."""
        family = socket.AF_INET6 if ":" in self._target else socket.AF_INET
        sock = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(WAIT_S)
        sock.connect((self._target, PORT))
        return sock

    def reach(self, client: socket.socket, payload: bytes) -> socket.socket:
        """The member that a datagram reaches."""
        return self.receive(client, payload)[0]

    def receive(self, client: socket.socket, payload: bytes) -> tuple[socket.socket, Any]:
        client.send(payload)
        readable, _, _ = select.select(self.members, [], [], WAIT_S)
        assert len(readable) == 1
        data, source = readable[0].recvfrom(4096)
        assert data == payload
        return readable[0], source

    def connect(self, length: int = 8, **options: int) -> tuple[socket.socket, socket.socket, bytes]:
        """A handshake up to the client's first packets: the client, its member, and the ID that the member chose."""
        client, chosen = self.client(), connection_id(length)
        member, source = self.receive(client, quic.initial(connection_id(8), **options))
        for kind in (quic.INITIAL, quic.HANDSHAKE):
            member.sendto(quic.long(kind, b"client", chosen, **options), source)
            client.recv(4096)
        for payload in (quic.long(quic.HANDSHAKE, chosen, **options), quic.short(chosen)):
            assert self.reach(client, payload) is member
        return client, member, chosen

    def attach(self, *options: object) -> None:
        self.tool.ok("attach", self.endpoint, "--flows", "quic", *options)

    def switch(self, members: list[socket.socket]) -> None:
        """Make a generation of these, and switch to it."""
        number = max(entry["generation"] for entry in self.tool.ok("map", "show", self.endpoint)["maps"]) + 1
        for sock in members:
            self.tool.ok("map", "add", self.endpoint, "--generation", number, "--cookie", sockets.cookie(sock.fileno()))
        self.tool.ok("map", "switch", self.endpoint, number)

    def table(self) -> Any:
        return self.tool.ok("status", self.endpoint)["groups"][0]["flows"]


@pytest.fixture
def lab(tool: Tool, in_netns: None) -> Iterator[Callable[[str], Lab]]:
    with ExitStack() as stack:
        yield lambda family: Lab(tool, stack, family)


@pytest.fixture
def at(lab: Callable[[str], Lab]) -> Lab:
    """One member, attached."""
    made = lab("ipv4")
    made.join()
    made.attach()
    return made


@pytest.mark.parametrize(
    ("family", "length", "version"),
    [
        *((family, 8, quic.VERSION_1) for family in ADDRESSES),
        ("ipv4", 1, quic.VERSION_1),
        ("ipv4", 16, quic.VERSION_2),
        ("ipv4", 20, quic.VERSION_1),
        ("ipv6", 20, quic.VERSION_2),
    ],
)
def test_a_connection_stays_when_its_address_changes(
    lab: Callable[[str], Lab], family: str, length: int, version: int
) -> None:
    at = lab(family)
    old = [at.join() for _ in range(3)]
    at.attach()
    connections = [at.connect(length, version=version) for _ in range(8)]
    new = [at.join() for _ in range(2)]
    at.switch(new)
    for client, member, chosen in connections:
        assert at.reach(client, quic.short(chosen)) is member
        assert at.reach(at.client(), quic.short(chosen)) is member  # NAT rebinding
        moved = at.client()
        assert at.reach(moved, quic.long(quic.HANDSHAKE, chosen, version=version)) is member
        assert at.reach(moved, quic.short(connection_id(length))) is member  # its address is known by now
    for _ in range(8):
        _, member, _ = at.connect(length, version=version)
        assert member in new
    found = at.table()
    assert (found["mode"], found["counters"]["older"], found["counters"]["moved"]) == ("quic", 0, 16)
    assert found["connection_ids"] == found["counters"]["learnt"] == 8 + 8 + 8
    for sock in old:
        at.members.remove(sock)
        sock.close()
    client, _, chosen = connections[0]
    assert at.reach(client, quic.short(chosen)) in new


def test_with_address_alone_a_moved_connection_is_lost(lab: Callable[[str], Lab]) -> None:
    """The arm without it."""
    at = lab("ipv4")
    old = [at.join()]
    at.tool.ok("attach", at.endpoint, "--flows", "address")
    client, member, chosen = at.connect()
    new = [at.join()]
    at.switch(new)
    assert at.reach(client, quic.short(chosen)) is member
    assert at.reach(at.client(), quic.short(chosen)) in new
    assert member in old


@pytest.mark.parametrize("family", ADDRESSES)
def test_what_it_does_not_know_goes_where_it_may_be_known(lab: Callable[[str], Lab], family: str) -> None:
    at = lab(family)
    old = [at.join()]
    at.attach()
    at.connect()
    new = [at.join()]
    at.switch(new)
    unknown = [quic.short(connection_id(8)), quic.long(quic.HANDSHAKE, connection_id(8))]
    unknown += [quic.long(quic.ZERO_RTT, connection_id(8)), quic.long(quic.HANDSHAKE, b"", version=quic.VERSION_2)]
    for payload in unknown:
        assert at.reach(at.client(), payload) is old[0]
    assert at.table()["counters"]["older"] == len(unknown)
    begun = [quic.initial(connection_id(8)), quic.initial(connection_id(20), version=quic.VERSION_2)]
    begun += [quic.initial(connection_id(8), version=0x1A2A3A4A), quic.initial(b"")]
    for payload in begun:
        assert at.reach(at.client(), payload) is new[0]
    before = at.table()["flows"]
    others = [quic.initial(connection_id(8), size=quic.LEAST - 1), quic.long(quic.RETRY, connection_id(8)), b""]
    others += [quic.long(quic.INITIAL, connection_id(8), version=0, size=quic.LEAST), b"\x40", b"\x00" * 64, b"\xc0"]
    others += [quic.initial(b"x" * 21, version=quic.VERSION_1, size=300), b"\xff" * 40]
    for payload in others:
        assert at.reach(at.client(), payload) is new[0]
    assert at.table()["flows"] == before
    at.members.remove(old[0])
    old[0].close()
    assert at.reach(at.client(), quic.short(connection_id(8))) is new[0]


def test_a_new_id_on_a_known_address_is_learnt(at: Lab) -> None:
    """NEW_CONNECTION_ID is encrypted: the first datagram that has the new ID comes from an address that is known."""
    client, member, _ = at.connect()
    new = [at.join()]
    at.switch(new)
    fresh = connection_id(8)
    assert at.reach(client, quic.short(fresh)) is member
    assert at.reach(at.client(), quic.short(fresh)) is member
    assert at.table()["counters"]["older"] == 0


def test_generations_may_have_ids_of_different_lengths(at: Lab) -> None:
    before = [at.connect(8) for _ in range(4)]
    at.switch([at.join()])
    after = [at.connect(20) for _ in range(4)]
    for client, member, chosen in before + after:
        assert at.reach(client, quic.short(chosen)) is member
        assert at.reach(at.client(), quic.short(chosen)) is member


def test_without_an_id_the_address_decides(at: Lab) -> None:
    client, member, _ = at.connect(0)
    at.switch([at.join()])
    assert at.reach(client, quic.short(b"")) is member
    assert at.table()["connection_ids"] == 0


def test_only_the_server_says_how_long_an_id_is(at: Lab) -> None:
    """A client that claims another length teaches nothing, and spoils nothing."""
    _, member, chosen = at.connect(8)
    liar = at.client()
    at.reach(liar, quic.initial(connection_id(8)))
    for length in (1, 7, 12, 20):
        at.reach(liar, quic.long(quic.HANDSHAKE, connection_id(length)))
    learnt = at.table()["connection_ids"]
    at.switch([at.join()])
    assert learnt == 1
    assert at.reach(at.client(), quic.short(chosen)) is member


@pytest.mark.parametrize("version", [quic.VERSION_1, quic.VERSION_2])
@pytest.mark.parametrize("length", [8, 20])
def test_a_handshake_packet_behind_an_initial_one_says_how_long_an_id_is(at: Lab, length: int, version: int) -> None:
    """A short certificate lets all that the server has to say fit into one datagram."""
    client, chosen = at.client(), connection_id(length)
    member, source = at.receive(client, quic.initial(connection_id(8), version=version))
    member.sendto(quic.answer(b"client", chosen, version=version), source)
    at.reach(client, quic.short(chosen))
    new = [at.join() for _ in range(2)]
    at.switch(new)
    assert at.reach(at.client(), quic.short(chosen)) is member
    counters = at.table()["counters"]
    assert (counters["learnt"], counters["moved"], counters["older"]) == (1, 1, 0)


def test_a_refusal_says_nothing_of_ids(at: Lab) -> None:
    """nginx refuses an invalid token by an Initial packet with the ID that the client made up as the source."""
    client, member, chosen = at.connect(8)
    liar, made_up = at.client(), connection_id(18)
    _, source = at.receive(liar, quic.initial(made_up))
    member.sendto(quic.long(quic.INITIAL, b"client", made_up), source)
    member.sendto(quic.answer(b"client", made_up)[:100], source)
    for number in range(10):
        assert at.reach(client, quic.short(chosen, 50 + number)) is member
    assert at.table()["connection_ids"] == 1
    at.switch([at.join()])
    assert at.reach(at.client(), quic.short(chosen)) is member
    assert at.table()["counters"]["older"] == 0


def test_retry_and_version_negotiation_say_nothing_of_ids(at: Lab) -> None:
    _, member, chosen = at.connect(8)
    asking = at.client()
    _, source = at.receive(asking, quic.initial(connection_id(8)))
    member.sendto(quic.long(quic.RETRY, b"client", connection_id(20)), source)
    member.sendto(quic.long(quic.INITIAL, b"client", connection_id(18), version=0), source)
    assert at.reach(asking, quic.initial(connection_id(20))) is member  # with the ID that Retry gave
    at.switch([at.join()])
    assert at.reach(at.client(), quic.short(chosen)) is member


def test_a_connected_socket_teaches_its_id_when_it_answers(lab: Callable[[str], Lab]) -> None:
    """haproxy answers so: the program does not see the client's later datagrams, as long as its address stays."""
    at = lab("mapped")  # a wildcard: a group that is bound to one address would split
    listener = at.join()
    at.attach()
    client, chosen = at.client(), connection_id(8)
    _, source = at.receive(client, quic.initial(connection_id(8)))
    answering = at.join()
    answering.connect(source)
    answering.send(quic.answer(b"client", chosen))
    client.recv(4096)
    assert at.reach(client, quic.short(chosen)) is answering
    at.members.remove(answering)
    at.switch([at.join()])
    assert at.reach(at.client(), quic.short(chosen)) is listener
    assert at.table()["counters"]["older"] == 0


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_flood_of_initials_evicts_no_connection(lab: Callable[[str], Lab], family: str) -> None:
    """It fills the map of flows, and none of its IDs is learnt, although the server answers them."""
    at = lab(family)
    at.join()
    at.attach("--flow-entries", 1024)
    connections = [at.connect() for _ in range(20)]
    at.switch([at.join()])
    for _ in range(4000):
        flood = at.client()
        member, source = at.receive(flood, quic.initial(connection_id(8)))
        member.sendto(quic.long(quic.HANDSHAKE, b"client", connection_id(8)), source)
        flood.close()
    for client, member, chosen in connections:
        assert at.reach(client, quic.short(chosen)) is member
        assert at.reach(at.client(), quic.short(chosen)) is member
    assert at.table()["connection_ids"] == 20


def test_a_group_changes_what_it_keeps(lab: Callable[[str], Lab]) -> None:
    at = lab("ipv4")
    at.join()
    at.tool.ok("attach", at.endpoint, "--flows", "address")
    client, member, chosen = at.connect()
    at.attach()
    assert at.table()["flows"] == 1  # kept
    at.connect()  # tells how long IDs are
    assert at.reach(client, quic.short(chosen)) is member
    at.switch([at.join()])
    assert at.reach(at.client(), quic.short(chosen)) is member
    assert at.tool.ok("attach", at.endpoint, "--flows", "address")["attached"][0]["result"] == "replaced"
    found = at.table()
    assert (found["mode"], found["connection_ids"]) == ("address", None)
    assert at.tool.ok("attach", at.endpoint, "--flows", "none")["attached"][0]["result"] == "replaced"
    assert at.table() is None
    at.attach()
    assert at.tool.ok("detach", at.endpoint)["detached"][0]["result"] == "detached"


def test_without_the_right_to_read_answers_nothing_is_changed(lab: Callable[[str], Lab]) -> None:
    at = lab("ipv4")
    at.join()
    assert at.tool.bpffs is not None
    for before in ("none", "address"):
        at.tool.ok("attach", at.endpoint, "--flows", before)
        command = at.tool.command("attach", at.endpoint, "--flows", "quic")
        held = ["setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-net_admin,-sys_admin"]
        done = subprocess.run([*held, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert "CAP_NET_ADMIN" in done.stderr
        found = at.table()
        assert (found and found["mode"]) == (None if before == "none" else before)


def test_a_lost_pin_of_the_link_is_damage_and_mended(at: Lab) -> None:
    client, member, chosen = at.connect()
    assert at.tool.bpffs is not None
    [pin] = at.tool.bpffs.rglob("quic_egress")
    pin.unlink()
    [problem] = at.tool.ok("status", at.endpoint)["groups"][0]["problems"]
    assert problem["kind"] == "damaged"
    assert at.tool.ok("attach", at.endpoint, "--repair")["attached"][0]["result"] == "repaired"
    at.connect(16)  # read again
    assert at.table()["connection_ids"] == 2
    at.switch([at.join()])
    assert at.reach(client, quic.short(chosen)) is member


def test_detached_means_that_nothing_is_read_any_more(at: Lab) -> None:
    assert at.tool.bpffs is not None
    [pin] = at.tool.bpffs.rglob("quic")
    number = listed("map", "show", "pinned", str(pin))["id"]
    assert number in maps_read_at_egress()
    at.tool.ok("detach", at.endpoint)
    deadline = time.monotonic() + WAIT_S
    while number in maps_read_at_egress():
        assert time.monotonic() < deadline


def listed(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "--json", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip() or "[]")


def maps_read_at_egress() -> set[int]:
    """The maps of the programs at the root of cgroup2, by id."""
    attached = {entry["id"] for entry in listed("cgroup", "show", str(cgroup.root()))}
    programs = [entry for entry in listed("prog", "show") if entry["id"] in attached]
    return {number for entry in programs for number in entry.get("map_ids", [])}
