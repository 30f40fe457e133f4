"""destroy: nothing without --yes; with it exactly what was shown. Both engines."""

from __future__ import annotations

import errno
import functools
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import sock_destroy, sockets
from reuseport_tool.kernel.socket_iterator import Walker
from reuseport_tool.models import Protocol
from reuseport_tool.sockets import destroy
from reuseport_tool.sockets.destroy import DestroyEngine
from reuseport_tool.sockets.select import Filter
from tests.kernel.conftest import PORT
from tests.kernel.sockets import churn
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
ENGINES = ["bpf", "netlink"]
ALL = 0xFFFFFFFF


def cookie(sock: socket.socket) -> int:
    return sockets.cookie(sock.fileno())


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@functools.cache
def walker() -> Walker:
    """Loaded once: a walk is of the namespace that it is done in."""
    return Walker(list(Protocol))


def everything() -> set[int]:
    return {raw.cookie for raws in walker().read().values() for raw in raws}


def shown(report: dict[str, list[dict[str, dict[str, int]]]]) -> set[int]:
    return {ending["socket"]["cookie"] for ending in report["endings"]}


@dataclass(kw_only=True)
class World:
    """Connections on two ports, and UDP sockets: bound, bound to the same port, connected."""

    listeners: list[socket.socket] = field(default_factory=list)
    clients: list[socket.socket] = field(default_factory=list)
    accepted: list[socket.socket] = field(default_factory=list)
    udp: list[socket.socket] = field(default_factory=list)

    def tcp(self, address: str, port: int, connections: int, stack: ExitStack) -> None:
        listener = stack.enter_context(churn.opened("listen", (address, port)))
        self.listeners.append(listener)
        for _ in range(connections):
            self.clients.append(stack.enter_context(socket.create_connection((address, port))))
            self.accepted.append(stack.enter_context(listener.accept()[0]))


@pytest.fixture
def world(in_netns: None) -> Iterator[World]:
    with ExitStack() as stack:
        made = World()
        made.tcp("127.0.0.1", PORT, 3, stack)
        made.tcp("::1", PORT + 1, 2, stack)
        made.udp = [stack.enter_context(churn.opened("udp", ("127.0.0.1", PORT))) for _ in range(2)]
        made.udp += [stack.enter_context(churn.opened("udp", ("::1", PORT)))]
        made.udp += [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))]
        made.udp[-1].connect(("127.0.0.1", PORT))
        yield made


@pytest.mark.parametrize("engine", ENGINES)
def test_exactly_the_shown(tool: Tool, world: World, engine: str) -> None:
    filters = ("destroy", "--endpoint", PORT, "--engine", engine)
    before = everything()
    dry = tool.ok(*filters)
    assert dry["dry_run"]
    assert dry["listeners"] == 1
    assert shown(dry) == {cookie(sock) for sock in world.accepted[:3]}
    assert everything() == before

    done = tool.ok(*filters, "--yes")
    assert (done["dry_run"], done["engine"]) == (False, engine)
    assert shown(done) == shown(dry)
    assert {ending["result"] for ending in done["endings"]} == {"ended"}
    # The peers got a reset, and are gone by that.
    assert before - everything() == shown(done) | {cookie(sock) for sock in world.clients[:3]}
    assert [error_of(sock) for sock in world.accepted] == [errno.ECONNABORTED] * 3 + [0] * 2
    assert [error_of(sock) for sock in world.clients] == [errno.ECONNRESET] * 3 + [0] * 2
    assert [error_of(sock) for sock in (*world.listeners, *world.udp)] == [0] * 6


@pytest.mark.parametrize("engine", ENGINES)
def test_one_by_cookie(tool: Tool, world: World, engine: str) -> None:
    victim = world.accepted[4]
    report = tool.ok("destroy", "--cookie", cookie(victim), "--yes", "--engine", engine)
    assert [ending["result"] for ending in report["endings"]] == ["ended"]
    assert [error_of(sock) for sock in world.accepted] == [0, 0, 0, 0, errno.ECONNABORTED]
    assert not tool.ok("destroy", "--cookie", cookie(victim), "--yes", "--engine", engine)["endings"]


@pytest.mark.parametrize("engine", ENGINES)
def test_by_process_spares_the_unconnected_udp_of_others(tool: Tool, world: World, server: Start, engine: str) -> None:
    process = server("other", "--udp", "--deaf", "--address", "127.0.0.1", port=PORT + 5)
    before = everything()
    report = tool.ok("destroy", "--pid", process.pid, "--yes", "--engine", engine)
    assert [(ending["result"], ending["socket"]["pid"]) for ending in report["endings"]] == [
        ("disconnected", process.pid)
    ]
    assert [error_of(sock) for sock in world.udp] == [0] * 4
    process.kill()
    process.wait()
    assert everything() == before - shown(report)


@pytest.mark.parametrize("engine", ENGINES)
def test_udp(tool: Tool, world: World, engine: str) -> None:
    """A connected one goes. A bound one gets the error, and stays bound."""
    report = tool.ok("destroy", "--protocol", "udp", "--state", "established", "--yes", "--engine", engine)
    assert [ending["result"] for ending in report["endings"]] == ["ended"]
    report = tool.ok("destroy", "--endpoint", f"udp://[::1]:{PORT}", "--yes", "--engine", engine)
    assert [ending["result"] for ending in report["endings"]] == ["disconnected"]
    assert [error_of(sock) for sock in world.udp] == [0, 0, errno.ECONNABORTED, errno.ECONNABORTED]


def test_netlink_cannot_tell_members_of_a_group_apart(tool: Tool, world: World) -> None:
    """It says so, and ends no other one instead."""
    for victim in world.udp[:2]:
        done = tool.run("destroy", "--cookie", cookie(victim), "--yes", "--engine", "netlink")
        (ending,) = done.json["endings"]
        assert (done.code, ending["result"]) in [(0, "disconnected"), (1, "refused")]
        hit = error_of(victim) == errno.ECONNABORTED
        assert hit == (ending["result"] == "disconnected")
    assert [error_of(sock) for sock in (*world.udp, *world.accepted)] == [0] * 9


def test_bpf_ends_one_member_of_a_group(tool: Tool, world: World) -> None:
    tool.ok("destroy", "--cookie", cookie(world.udp[1]), "--yes", "--engine", "bpf")
    assert [error_of(sock) for sock in world.udp] == [0, errno.ECONNABORTED, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_listeners_only_by_name(tool: Tool, world: World, engine: str) -> None:
    number = cookie(world.listeners[0])
    report = tool.ok("destroy", "--cookie", number, "--yes", "--engine", engine)
    assert (report["endings"], report["listeners"]) == ([], 1)
    assert number in everything()
    report = tool.ok("destroy", "--cookie", number, "--state", "listen", "--yes", "--engine", engine)
    assert [ending["result"] for ending in report["endings"]] == ["ended"]
    assert number not in everything()
    assert cookie(world.listeners[1]) in everything()


@pytest.mark.parametrize("engine", ENGINES)
def test_time_wait_is_left_alone(tool: Tool, world: World, engine: str) -> None:
    number = cookie(world.clients[0])
    world.clients[0].close()
    world.accepted[0].close()
    report = tool.ok("destroy", "--cookie", number, "--yes", "--engine", engine)
    assert (report["endings"], report["time_wait"]) == ([], 1)
    assert number in everything()
    tool.fails(2, "destroy", "--state", "time_wait", "--yes")


def test_no_filter_is_refused(tool: Tool, world: World) -> None:
    before = everything()
    for options in ((), ("--yes",), ("--yes", "--engine", "netlink")):
        tool.fails(2, "destroy", *options)
    assert everything() == before


@pytest.mark.parametrize("end", [sock_destroy.by_bpf, sock_destroy.by_netlink])
@pytest.mark.parametrize("change", ["cookie", "local_port", "remote_port", "local", "remote", "state"])
def test_a_socket_that_is_not_as_it_was_is_spared(world: World, end: Callable[..., object], change: str) -> None:
    """Both engines take cookie, tuple and state together: one of them wrong, and nothing ends."""
    number = cookie(world.accepted[0])
    (raw,) = [raw for raw in walker().read()[Protocol.TCP] if raw.cookie == number]
    states = ALL
    if change == "state":
        states &= ~(1 << raw.state)
    elif change in ("local", "remote"):
        raw = raw._replace(**{change: socket.inet_aton("127.0.0.9").ljust(16, b"\0")})
    else:
        raw = raw._replace(**{change: getattr(raw, change) + 1})
    assert end(Protocol.TCP, [raw], states) == {}
    assert [error_of(sock) for sock in world.accepted] == [0] * 5


@pytest.mark.parametrize("engine", list(DestroyEngine))
def test_what_closes_meanwhile_is_gone(world: World, engine: DestroyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    victims = {cookie(sock) for sock in world.accepted[:2]}
    end = destroy.end

    def close_one_first(*arguments: object) -> object:
        world.clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, churn.RESET_ON_CLOSE)
        world.clients[0].close()
        return end(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(destroy, "end", close_one_first)
    report = destroy.destroy(Filter(cookies=tuple(victims)), None, act=True, engine=engine)
    assert sorted(ending.result for ending in report.endings) == ["ended", "gone"]


def test_without_the_kfunc_netlink_is_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_destroy, "kfunc", lambda: None)
    report = destroy.destroy(Filter(cookies=(cookie(world.accepted[0]),)), None, act=True)
    assert (report.engine, [ending.result for ending in report.endings]) == ("netlink", ["ended"])
    with pytest.raises(Unsupported):
        destroy.destroy(Filter(cookies=(cookie(world.accepted[1]),)), None, act=True, engine=DestroyEngine.BPF)
    assert error_of(world.accepted[1]) == 0


def test_the_states_alone_spare_a_listener(world: World) -> None:
    """The tests above can fail: with every state allowed, the same call ends it."""
    number = cookie(world.listeners[0])
    (raw,) = [raw for raw in walker().read()[Protocol.TCP] if raw.cookie == number]
    allowed = destroy._allowed_states(Filter(cookies=(number,)))
    assert sock_destroy.by_bpf(Protocol.TCP, [raw], allowed) == {}
    assert number in everything()
    assert sock_destroy.by_bpf(Protocol.TCP, [raw], ALL) == {number: 0}
    assert number not in everything()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_one_listener_of_a_group(tool: Tool, address: str) -> None:
    """By netlink, whose look-up chooses among the listeners by a hash."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        group = [
            stack.enter_context(socket.create_server((address, PORT), family=family, reuse_port=True)) for _ in range(9)
        ]
        chosen = cookie(group[4])
        report = tool.ok("destroy", "--cookie", chosen, "--state", "listen", "--yes")
        assert [ending["result"] for ending in report["endings"]] == ["ended"]
        left = {entry["cookie"] for entry in tool.ok("sockets", "--state", "listen")["sockets"]}
        assert left == {cookie(sock) for sock in group} - {chosen}
