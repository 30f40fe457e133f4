"""Every way in which a connection is reset, counted exactly, and as what it is."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.errors import MissingCapability, Unsupported
from reuseport_tool.kernel import btf, loopback, netns, resets, sysctl
from reuseport_tool.kernel.abi import ResetKind
from reuseport_tool.kernel.packets import CraftedClient, Family, Wire
from reuseport_tool.kernel.resets import ResetCounter
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT
from tests.kernel.needs import KernelTooOld

pytestmark = pytest.mark.needs("tcp_send_reset")
NEVER, ACCEPTED, HANDSHAKE, REFUSED = ResetKind
DEADLINE_S = 20.0
ADDRESSES = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
MAPPED = "::ffff:127.0.0.1"

families = pytest.mark.parametrize("address", [*ADDRESSES.values(), MAPPED])


@pytest.fixture
def counter(in_netns: None) -> Iterator[ResetCounter]:
    with ResetCounter([PORT]) as made:
        yield made


def listen(address: str, port: int = PORT, **options: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for name, value in options.items():
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.bind((address, port))
    sock.listen(256)
    return sock


def connect(count: int, address: str, port: int = PORT) -> list[socket.socket]:
    """Clients whose request has arrived."""
    plain = address.removeprefix("::ffff:")
    clients = [socket.create_connection((plain, port), timeout=DEADLINE_S) for _ in range(count)]
    for client in clients:
        client.sendall(b"request")
    return clients


def outcomes(clients: list[socket.socket]) -> dict[str, int]:
    """What each client got: "reset", "closed" or data."""
    counts: dict[str, int] = {}
    for client in clients:
        try:
            got = client.recv(100).decode() or "closed"
        except ConnectionResetError:
            got = "reset"
        client.close()
        counts[got] = counts.get(got, 0) + 1
    return counts


def counted(counter: ResetCounter) -> dict[ResetKind, int]:
    sums: dict[ResetKind, int] = {}
    for row in counter.counts.rows():
        assert row.port == PORT
        sums[row.kind] = sums.get(row.kind, 0) + row.count
    return sums


@families
def test_queued_connections_of_a_closed_listener_were_never_accepted(counter: ResetCounter, address: str) -> None:
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    old = listen(address)
    clients = connect(20, address)
    with listen(address):
        old.close()
        assert outcomes(clients) == {"reset": 20}
    assert [(row.kind, row.pid, row.count) for row in counter.counts.rows()] == [(NEVER, os.getpid(), 20)]


@families
def test_what_migrates_is_not_reset(counter: ResetCounter, address: str) -> None:
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")
    old = listen(address)
    clients = connect(40, address)
    with listen(address) as new:
        old.close()
        for _ in clients:
            with new.accept()[0] as accepted:
                accepted.recv(100)
                accepted.sendall(b"answer")
        assert outcomes(clients) == {"answer": 40}
    assert counter.counts.rows() == ()


@families
def test_an_accepted_connection_with_unread_data_is_the_servers_doing(counter: ResetCounter, address: str) -> None:
    with listen(address) as listener:
        clients = connect(3, address)
        for _ in clients:
            accepted, _ = listener.accept()
            loopback.wait_received(accepted, len(b"request"))
            accepted.close()
        assert outcomes(clients) == {"reset": 3}
    assert counted(counter) == {ACCEPTED: 3}


@families
def test_data_after_the_server_has_closed_is_the_servers_doing(counter: ResetCounter, address: str) -> None:
    """A keep-alive connection that the server closes while the client sends its next request."""
    refuse_too_old()  # most of these are TIME_WAIT sockets by then
    with listen(address) as listener:
        clients = connect(3, address)
        for client in clients:
            with listener.accept()[0] as accepted:
                accepted.recv(100)
            assert client.recv(100) == b""
            client.sendall(b"request")
        assert wait_until(lambda: counted(counter) == {ACCEPTED: 3}, DEADLINE_S), counter.counts.rows()
    for client in clients:
        client.close()


def refuse_too_old() -> None:
    if not resets.sees_packets_without_socket():
        raise KernelTooOld("tcp_send_reset is not reached without a whole socket before Linux 6.10")


def test_what_the_kernel_shows_is_found_without_a_new_namespace(
    in_netns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a follower, which has no CAP_SYS_ADMIN."""
    tried = resets.sees_packets_without_socket()

    def refused() -> contextlib.AbstractContextManager[None]:
        raise MissingCapability("not permitted")

    monkeypatch.setattr(resets.netns, "throw_away", refused)
    assert resets.sees_packets_without_socket.__wrapped__() is tried is not None


@families
def test_a_connect_to_a_closed_port_is_refused(counter: ResetCounter, address: str) -> None:
    refuse_too_old()
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            connect(1, address)
    assert [(row.kind, row.pid, row.count) for row in counter.counts.rows()] == [(REFUSED, None, 5)]


@families
@pytest.mark.parametrize("another", [True, False])
def test_a_handshake_whose_final_ack_finds_no_listener(counter: ResetCounter, address: str, another: bool) -> None:
    """TCP_DEFER_ACCEPT keeps the request until the data comes; by then its listener has closed."""
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    if not another:
        refuse_too_old()
    old = listen(address, TCP_DEFER_ACCEPT=30)
    plain = address.removeprefix("::ffff:")
    clients = [socket.create_connection((plain, PORT), timeout=DEADLINE_S) for _ in range(7)]
    with listen(address) if another else contextlib.nullcontext():
        old.close()
        assert counter.counts.rows() == ()
        for client in clients:
            client.sendall(b"request")
        assert outcomes(clients) == {"reset": 7}
    assert [(row.kind, row.count) for row in counter.counts.rows()] == [(HANDSHAKE, 7)]


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("another", [True, False])
def test_packets_that_come_late_are_not_counted_again(counter: ResetCounter, family: Family, another: bool) -> None:
    """The connection was counted when it was reset; what its client had sent before it knew arrives after."""
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    with Wire(family, PORT) as wire:
        old = listen(family.server)
        client = wire.client()
        client.syn()
        assert wire.wait(lambda: client.syn_acks > 0, DEADLINE_S)
        client.ack(b"request")
        loopback.wait_queued(old)
        with listen(family.server) if another else contextlib.nullcontext():
            old.close()
            assert wire.wait(lambda: client.reset, DEADLINE_S)
            for _ in range(3):
                client.reset = False
                client.ack(b"more")
                assert wire.wait(lambda: client.reset, DEADLINE_S)
    assert counted(counter) == {NEVER: 1}


def end_by_fin(client: CraftedClient, accepted: socket.socket) -> None:
    client.fin()
    assert accepted.recv(100) == b""
    accepted.close()


def end_by_rst(client: CraftedClient, accepted: socket.socket) -> None:
    client.rst()
    with accepted, pytest.raises(ConnectionResetError):
        accepted.recv(100)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("remembers", [True, False], ids=["as-it-is", "without-tcp_ended"])
@pytest.mark.parametrize("late", [CraftedClient.ack, CraftedClient.fin], ids=["ack", "fin"])
@pytest.mark.parametrize("end", [end_by_fin, end_by_rst])
def test_a_packet_of_a_connection_that_had_ended_is_no_handshake(
    in_netns: None,
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
    remembers: bool,
    late: Callable[[CraftedClient], None],
    end: Callable[[CraftedClient, socket.socket], None],
) -> None:
    """An ACK that its own RST overtook, a FIN that was sent twice: the listener resets them, and nothing was lost.

    Without the program tcp_ended each would be counted as a lost handshake.
    """
    if not remembers:
        monkeypatch.setattr(resets, "PROGRAMS", resets.PROGRAMS[1:])
    with ResetCounter([PORT]) as counter, Wire(family, PORT) as wire, listen(family.server) as listener:
        client = wire.client()
        client.syn()
        assert wire.wait(lambda: client.syn_acks > 0, DEADLINE_S)
        client.ack()
        accepted, _ = listener.accept()
        accepted.settimeout(DEADLINE_S)
        end(client, accepted)
        # The client acknowledges the server's FIN, which is the end of the connection.
        assert wire.wait(lambda: not states(family, client.port), DEADLINE_S)
        client.reset = False
        late(client)
        assert wire.wait(lambda: client.reset, DEADLINE_S)
        assert counted(counter) == ({} if remembers else {HANDSHAKE: 1})


def states(family: Family, port: int) -> list[str]:
    """The states of the server's sockets of a connection from this port."""
    table = Path("/proc/thread-self/net") / ("tcp" if family is Family.IPV4 else "tcp6")
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return [row[3] for row in rows if int(row[2].rpartition(":")[2], 16) == port]


def test_other_ports_and_other_namespaces_are_not_counted(counter: ResetCounter) -> None:
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    for port, elsewhere in ((PORT + 1, contextlib.nullcontext()), (PORT, netns.throw_away())):
        with elsewhere:
            old = listen("127.0.0.1", port)
            clients = connect(4, "127.0.0.1", port)
            old.close()
            assert outcomes(clients) == {"reset": 4}
            with pytest.raises(ConnectionRefusedError):
                connect(1, "127.0.0.1", port)
    assert counter.counts.rows() == ()


def test_each_process_has_its_own(counter: ResetCounter) -> None:
    """One connection waited, one was accepted and closed unread, one got data after it had been closed."""
    refuse_too_old()
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    listener = listen("127.0.0.1")
    clients = connect(3, "127.0.0.1")
    unread, _ = listener.accept()
    loopback.wait_received(unread, len(b"request"))
    unread.close()
    with listener.accept()[0] as answered:
        answered.recv(100)
    assert clients[1].recv(100) == b""
    clients[1].sendall(b"more")
    assert wait_until(lambda: counted(counter) == {ACCEPTED: 2}, DEADLINE_S), counter.counts.rows()
    listener.close()
    for client in clients:
        client.close()
    mine = counter.of({os.getpid()})
    assert (mine.never_accepted, mine.accepted) == (1, 2)
    assert counter.of({2**22 - 1}).total == 0


def test_a_port_that_is_added_counts_from_then_on(counter: ResetCounter) -> None:
    counter.watch([PORT, PORT + 1])
    for port, count in ((PORT, 1), (PORT + 1, 2)):
        listener = listen("127.0.0.1", port)
        clients = connect(count, "127.0.0.1", port)
        listener.close()
        assert outcomes(clients) == {"reset": count}
    assert [(row.port, row.count) for row in counter.counts.rows()] == [(PORT, 1), (PORT + 1, 2)]


CLOSE_LATER = f"""
import socket, sys
listener = socket.create_server(("127.0.0.1", {PORT}), reuse_port=True)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_who_closed_is_told_by_the_number_that_we_see(counter: ResetCounter) -> None:
    """A process ends, in a PID namespace of its own; the kernel closes its listener."""
    sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", CLOSE_LATER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as children:
            server = int(children.read())
        clients = connect(6, "127.0.0.1")
        parent.stdin.close()
        assert outcomes(clients) == {"reset": 6}
    assert [(row.kind, row.pid, row.count) for row in counter.counts.rows()] == [(NEVER, server, 6)]


@pytest.mark.parametrize("error", [Unsupported("no BTF"), MissingCapability("not permitted")])
def test_what_cannot_be_counted_is_unknown(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> bool:
        raise error

    monkeypatch.setattr(btf, "has_tracepoint", refuse)
    with resets.counting([PORT]) as counter:
        assert counter == str(error)
