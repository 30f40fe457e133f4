"""The walk over sockets: what it tells, what it filters, and that churn neither hides nor repeats a socket."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.errors import ProgramRejected
from reuseport_tool.kernel import bpf, bpf_iterator, btf, netns, program, socket_iterator, sockets
from reuseport_tool.kernel.abi import SocketRecord
from reuseport_tool.kernel.socket_iterator import SocketWalk
from reuseport_tool.models import Endpoint, Protocol, SocketState
from reuseport_tool.sockets import select as listing
from reuseport_tool.sockets.select import Filter
from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT
from tests.kernel.sockets import churn
from tests.kernel.test_rights import PoorTool
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
ROUNDS = 50
SURVIVORS = 150


@pytest.fixture
def churning(in_netns: None, spawn: Start) -> Callable[[str, str], None]:
    def start(kind: str, address: str) -> None:
        script = str(Path(churn.__file__))
        process = spawn(sys.executable, script, kind, address, PORT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0]
        assert process.stdout.readline() == "ready\n"

    return start


def cookie(sock: socket.socket) -> int:
    return sockets.cookie(sock.fileno())


def wrong(survivors: Collection[int], seen: Collection[SocketRecord]) -> dict[int, int]:
    """Survivors that were not seen exactly once, with how often they were."""
    counts = Counter(raw.cookie for raw in seen)
    return {survivor: counts[survivor] for survivor in survivors if counts[survivor] != 1}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("kind", "protocol"), [("listen", Protocol.TCP), ("udp", Protocol.UDP)])
def test_churn_in_one_bucket(churning: Callable[[str, str], None], kind: str, protocol: Protocol, address: str) -> None:
    """A group's sockets share a hash bucket. The walk stops in the middle of it again and again."""
    if not socket_iterator.exactly_once(protocol):
        pytest.skip("the kernel does not promise exactly-once iteration")
    with ExitStack() as stack:
        place = (address, PORT)
        survivors = {cookie(stack.enter_context(churn.opened(kind, place))) for _ in range(SURVIVORS)}
        churning(kind, address)
        walk = stack.enter_context(SocketWalk(protocol))
        strangers: set[int] = set()

        def walk_again() -> bool:
            seen = walk.read(chunk=256)  # two records
            assert wrong(survivors, seen) == {}
            strangers.update({raw.cookie for raw in seen} - survivors)
            return len(strangers) > 10 * churn.AT_MOST

        assert wait_until(walk_again, 20, poll_s=0), "nothing came and went"
        for _ in range(ROUNDS):
            walk_again()


def test_churn_among_connections(churning: Callable[[str, str], None]) -> None:
    if not socket_iterator.exactly_once(Protocol.TCP):
        pytest.skip("the kernel does not promise exactly-once iteration")
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", PORT), backlog=1024))
        survivors = set()
        for _ in range(SURVIVORS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", PORT)))
            survivors |= {cookie(client), cookie(stack.enter_context(server.accept()[0]))}
        accepting = threading.Thread(target=_drop_all, args=(server,))
        accepting.start()
        stack.callback(accepting.join)
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        churning("connect", "127.0.0.1")
        walk = stack.enter_context(SocketWalk(Protocol.TCP))
        for _ in range(ROUNDS):
            assert wrong(survivors, walk.read(chunk=256)) == {}


def _drop_all(server: socket.socket) -> None:
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return


def test_the_churn_test_can_fail(in_netns: None) -> None:
    with churn.opened("listen", ("127.0.0.1", PORT)) as one, churn.opened("listen", ("127.0.0.1", PORT)) as two:
        with SocketWalk(Protocol.TCP) as walk:
            seen = walk.read()
        assert wrong({cookie(one), cookie(two)}, seen) == {}
        assert wrong({cookie(one), cookie(two)}, [*seen, seen[0]]) == {seen[0].cookie: 2}
        assert wrong({cookie(one), cookie(two)}, seen[1:]) == {seen[0].cookie: 0}


@pytest.mark.parametrize("trace", ["a batch", "no batch", None])
def test_an_unpromising_kernel_is_named(
    in_netns: None, monkeypatch: pytest.MonkeyPatch, trace: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from reuseport_tool.cli import show

    monkeypatch.setattr(btf, "has_union", lambda _: False)
    monkeypatch.setattr(btf, "has_struct", lambda _: trace == "a batch")
    monkeypatch.setattr(btf, "has_field", lambda *_: trace == "no batch")
    report = listing.sockets(Filter(protocol=Protocol.UDP), None)
    assert report.exactly_once is (False if trace else None)
    show.result(report, as_json=False)
    assert ("does not promise" if trace else "is not known") in capsys.readouterr().out


@pytest.fixture
def pair(in_netns: None) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener, a client, and the accepted end."""
    with (
        socket.create_server(("127.0.0.1", PORT), backlog=7) as listener,
        socket.create_connection(("127.0.0.1", PORT)) as client,
        listener.accept()[0] as accepted,
    ):
        yield listener, client, accepted


Pair = tuple[socket.socket, socket.socket, socket.socket]
TICK_S = 0.02  # the kernel counts in jiffies of 10 ms at most


def test_fields(tool: Tool, pair: Pair) -> None:
    listener, client, accepted = pair
    begun_s = time.monotonic()
    client.sendall(b"12345")
    by_cookie = {entry["cookie"]: entry for entry in tool.ok("sockets")["sockets"]}
    assert set(by_cookie) == {cookie(sock) for sock in pair}
    shown = by_cookie[cookie(accepted)]
    assert shown["local"] == f"127.0.0.1:{PORT}"
    assert shown["remote"] == "{}:{}".format(*client.getsockname())
    assert (shown["state"], shown["receive_queue"], shown["pid"]) == ("established", 5, os.getpid())
    assert shown["inode"] == os.fstat(accepted.fileno()).st_ino
    assert 0 <= shown["idle_s"] <= time.monotonic() - begun_s + TICK_S
    shown = by_cookie[cookie(listener)]
    assert (shown["state"], shown["accept_queue"], shown["backlog"], shown["remote"]) == ("listen", 0, 7, None)


def test_sockets_of_every_kind_agree_with_ss(tool: Tool, pair: Pair) -> None:
    """Also TIME_WAIT, IPv6, unconnected and connected UDP."""
    _, client, accepted = pair
    client.close()
    accepted.close()
    with socket.create_server(("::1", PORT), family=socket.AF_INET6) as six, socket.socket() as waiting:
        udp = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        udp[0].bind(("::1", PORT))
        udp[1].connect(("127.0.0.1", PORT))
        report = tool.ok("sockets")
        lines = subprocess.run(["ss", "-Htuane"], capture_output=True, text=True, check=True).stdout.splitlines()
        theirs = {int(word[3:], 16) for line in lines for word in line.split() if word.startswith("sk:")}
        assert {entry["cookie"] for entry in report["sockets"]} == theirs
        states = Counter(entry["state"] for entry in report["sockets"])
        assert states == {"listen": 2, "time_wait": 1, "unconnected": 1, "established": 1}
        for sock in (six, waiting, *udp):
            sock.close()


def test_a_half_open_connection_has_an_age(tool: Tool, pair: Pair) -> None:
    """TCP_DEFER_ACCEPT keeps the request socket until data comes."""
    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
    begun_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", PORT)):
        (entry,) = tool.ok("sockets", "--state", "NEW-SYN-RECV", "--endpoint", PORT)["sockets"]
        assert 0 <= entry["age_s"] <= time.monotonic() - begun_s + TICK_S
        assert entry["inode"] is None
        assert entry["pid"] is None
        assert tool.ok("sockets", "--older-than", 0, "--state", "new_syn_recv")["sockets"]
        report = tool.ok("destroy", "--endpoint", PORT, "--state", "new_syn_recv", "--state", "last_ack", "--yes")
        assert (report["endings"], report["request_sockets"]) == ([], 1)


FILTERS: list[tuple[Filter, str]] = [
    (Filter(endpoint=Endpoint(protocol=Protocol.TCP, address=None, port=PORT)), "la"),
    (Filter(endpoint=Endpoint(protocol=Protocol.TCP, address="127.0.0.1", port=PORT)), "la"),
    (Filter(endpoint=Endpoint(protocol=Protocol.TCP, address="0.0.0.0", port=PORT)), ""),
    (Filter(endpoint=Endpoint(protocol=Protocol.TCP, address="::", port=PORT)), ""),
    (Filter(endpoint=Endpoint(protocol=Protocol.UDP, address=None, port=PORT)), ""),
    (Filter(states=(SocketState.LISTEN,)), "l"),
    (Filter(states=(SocketState.LISTEN, SocketState.ESTABLISHED)), "lca"),
    (Filter(protocol=Protocol.UDP), ""),
    (Filter(protocol=Protocol.TCP), "lca"),
    (Filter(idle_s=0), "ca"),
    (Filter(idle_s=1000), ""),
    (Filter(older_than_s=1000), ""),
]


@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=lambda value: str(value))
def test_filters(pair: Pair, wanted: Filter, expected: str) -> None:
    names = {cookie(sock): name for sock, name in zip(pair, "lca", strict=True)}
    report = listing.sockets(wanted, None)
    assert sorted(names[entry.cookie] for entry in report.sockets) == sorted(expected)


def test_cookie_and_pid_filters(tool: Tool, pair: Pair, server: Start) -> None:
    process = server("other", port=PORT + 1)
    assert [entry["local"] for entry in tool.ok("sockets", "--pid", process.pid)["sockets"]] == [
        f"127.0.0.1:{PORT + 1}"
    ]
    assert [entry["cookie"] for entry in tool.ok("sockets", "--cookie", cookie(pair[1]))["sockets"]] == [
        cookie(pair[1])
    ]


def test_a_wildcard_means_its_own_connections(in_netns: None) -> None:
    """Not those of another listener that is bound to one address of the same port."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(churn.opened("listen", (name, PORT))) for name in ("0.0.0.0", "127.0.0.2")]
        for name in ("127.0.0.1", "127.0.0.2"):
            stack.enter_context(socket.create_connection((name, PORT)))
        accepted = [stack.enter_context(listener.accept()[0]) for listener in listeners]
        report = listing.sockets(Filter(endpoint=Endpoint(protocol=Protocol.TCP, address="0.0.0.0", port=PORT)), None)
        assert {entry.cookie for entry in report.sockets} == {cookie(listeners[0]), cookie(accepted[0])}


def test_generations(tool: Tool, server: Start) -> None:
    one = server("one", "--deaf")
    tool.ok("attach", PORT)
    report = tool.ok("sockets", "--endpoint", PORT, "--generation", 1)["sockets"]
    assert [(entry["pid"], entry["generation"]) for entry in report] == [(one.pid, 1)]
    server("two", "--deaf")
    both = tool.ok("sockets", "--endpoint", PORT, "--state", "listen")["sockets"]
    assert sorted(str(entry["generation"]) for entry in both) == ["1", "None"]
    assert "--pid" in tool.fails(6, "sockets", "--endpoint", PORT, "--generation", 2)["hint"]


def test_the_generation_of_an_accepted_connection(tool: Tool) -> None:
    """The accepted end has that of its process; the client's end and connections elsewhere have none."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(churn.opened("listen", ("127.0.0.1", PORT + index))) for index in (0, 1)]
        for listener in listeners:
            stack.enter_context(socket.create_connection(listener.getsockname()))
        accepted = [stack.enter_context(listener.accept()[0]) for listener in listeners]
        tool.ok("attach", PORT)
        shown = {entry["cookie"]: entry["generation"] for entry in tool.ok("sockets")["sockets"]}
        expected = {cookie(listeners[0]), cookie(accepted[0])}
    assert {number for number in shown if shown[number]} == expected
    assert len(shown) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nonsense", 1),
        ("--state", "sleeping"),
        ("--state", "unconnected", "--protocol", "tcp"),
        ("--generation", 1),
        ("--endpoint", "x"),
        ("--endpoint", PORT, "--protocol", "udp"),
        ("--pid", "x"),
        ("--idle", -1),
        ("--cookie", 0),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
@pytest.mark.parametrize("verb", ["sockets", "destroy"])
def test_bad_filters(tool: Tool, verb: str, arguments: tuple[object, ...]) -> None:
    tool.fails(2, verb, *arguments)


def test_a_process_that_is_gone(tool: Tool) -> None:
    tool.fails(6, "sockets", "--pid", 4194304)


def test_a_process_that_ends_while_it_is_listed(pair: Pair, server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = server("short", port=PORT + 1)
    select_all = listing.selections

    def end_first(*arguments: object) -> object:
        process.kill()
        process.wait()
        return select_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "selections", end_first)
    assert list(listing.sockets(Filter(pids=(process.pid,)), None).sockets) == []


def test_a_namespace_that_disappears(tool: Tool, spawn: Start) -> None:
    process = spawn("unshare", "--net", "sleep", "1000")
    assert wait_until(lambda: _netns_of(process.pid) not in (None, netns.identity()), 10)
    assert tool.ok("--netns", f"pid:{process.pid}", "sockets")["sockets"] == []
    process.kill()
    process.wait()
    tool.fails(6, "--netns", f"pid:{process.pid}", "sockets")
    tool.fails(6, "--netns", f"pid:{process.pid}", "destroy", "--state", "established", "--yes")


@pytest.mark.parametrize("capabilities", ["+bpf,+perfmon,+net_admin", "+bpf,+perfmon,+net_admin,+sys_ptrace"])
def test_no_permission_for_one_of_the_namespaces(tool: Tool, pair: Pair, spawn: Start, capabilities: str) -> None:
    """Neither to see it nor to enter it: an error for that one, while one's own is listed."""
    there = spawn("unshare", "--net", "sleep", "1000")
    assert wait_until(lambda: _netns_of(there.pid) not in (None, netns.identity()), 10)
    few = PoorTool(tool.bpffs, capabilities)
    for verb in (("sockets",), ("destroy", "--cookie", cookie(pair[1]), "--yes")):
        error = few.fails(3, "--netns", f"pid:{there.pid}", *verb)
        assert str(there.pid) in error["message"]
        assert "CAP_" in error["hint"]
    assert len(few.ok("sockets")["sockets"]) == 3


def _netns_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def test_without_capabilities(tool: Tool, pair: Pair) -> None:
    for verb in (("sockets",), ("destroy", "--cookie", cookie(pair[1]), "--yes")):
        error = PoorTool(tool.bpffs).fails(3, *verb)
        assert "CAP_" in error["hint"] or "root" in error["hint"]
    assert len(tool.ok("sockets")["sockets"]) == 3


def test_without_the_cookie_helper(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 5.12: the first program is refused, and a dump by sock_diag gives the cookies."""
    load = program.load

    def refusing(source: program.Source, *arguments: Any, **options: Any) -> bpf.Program:
        if "OFF_COOKIE" not in source.defines:
            raise ProgramRejected("unknown func bpf_get_socket_cookie#46")
        return load(source, *arguments, **options)

    monkeypatch.setattr(bpf_iterator, "load", refusing)
    with SocketWalk(Protocol.TCP) as walk:
        assert sorted(raw.cookie for raw in walk.read()) == sorted(cookie(sock) for sock in pair)


def test_every_socket_has_a_cookie(pair: Pair) -> None:
    """Nobody has asked for these before the walk; it gives what SO_COOKIE then says."""
    with SocketWalk(Protocol.TCP) as walk:
        seen = {raw.cookie for raw in walk.read()}
    assert 0 not in seen
    assert seen == {cookie(sock) for sock in pair}
