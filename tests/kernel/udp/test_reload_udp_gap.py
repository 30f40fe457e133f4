"""`reload udp://… --run`: the old server has to be gone before the new one starts, and no datagram is lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.kernel import links
from tests.kernel.udp.test_reload_udp import ADDRESSES, SERVER, Load, Start, end_new_servers, endpoint, server
from tests.tool import Tool

__all__ = ["end_new_servers", "server"]

GAP_S = 0.7  # more than a receive buffer of the default size holds of the load

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")


def restart(old: subprocess.Popen[str], *options: object, gap_s: float = GAP_S) -> str:
    """A shell command that stops the old server and starts the new one when that is gone, after a while."""
    pid = old.pid
    # The old server is a child of the test, which does not wait for it: gone is what has closed its files.
    gone = f'until [ -z "$(ls /proc/{pid}/fd 2>/dev/null)" ]; do sleep 0.01; done'
    new = " ".join(map(str, (*SERVER, "new", *options)))
    return f"kill {pid}; {gone}; sleep {gap_s}; {new} >/dev/null 2>&1 &"


def run(tool: Tool, command: str, *options: object) -> tuple[int, Any, str]:
    done = tool.run("reload", "--settle", "0.3s", *options, "--flows", "none", "--run", command)
    return done.code, done.json if done.out else None, done.err


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_comes_in_the_gap_is_given_to_the_new_server(tool: Tool, server: Start, address: str) -> None:
    options = ("--address", address)
    old = server("old", *options, "--polite")
    with Load(address, under_way=400) as load:
        code, report, err = run(tool, restart(old, *options), endpoint(address))
    assert code == 0, err
    assert report["result"] == "reloaded"
    [handed_over] = report["datagrams"]
    losses = ("unread", "drops_old", "drops_new", "not_given")
    assert {name: handed_over[name] for name in losses} == dict.fromkeys(losses, 0)
    assert handed_over["given"] > 277  # more than the old sockets would have held
    assert load.unanswered == {}
    assert set(load.answers) == {"old", "new"}


LATE = ("--delay", 0.1)  # so that a server that ends at once leaves some without an answer


@pytest.mark.parametrize(("address", "owner"), [("::1", ()), ("127.0.0.1", ("--uid", 65534))])
def test_a_server_that_ends_at_once_answers_before(
    tool: Tool, server: Start, address: str, owner: tuple[object, ...]
) -> None:
    """It gets nothing any more before the command runs, and has answered what it got."""
    options = ("--address", address, *LATE, *owner)
    old = server("old", *options)
    with Load(address) as load:
        code, report, err = run(tool, restart(old, *options, gap_s=0), endpoint(address))
    assert (code, report["warnings"], load.unanswered) == (0, [], {}), err
    [handed_over] = report["datagrams"]
    assert handed_over["given"] > 0
    assert handed_over["to_old"] <= load.answers["old"]  # what was given on counts for the new one only
    assert set(load.answers) == {"old", "new"}
    [found] = tool.ok("status", endpoint(address))["groups"]
    assert [entry["flag"] for entry in found["listeners"]] == ["working"] * 2


def test_without_settle_it_leaves_some_without_an_answer(tool: Tool, server: Start) -> None:
    """The arm that loses."""
    old = server("old", *LATE)
    with Load(patience_s=1.0) as load:
        run(tool, restart(old, *LATE, gap_s=0), endpoint(), "--settle", "0s")
    assert load.lost() > 0


def test_a_server_that_keeps_its_sockets_gets_what_waited(tool: Tool, server: Start) -> None:
    server("old", *LATE)
    with Load() as load:
        code, report, err = run(tool, "true", endpoint())
    assert (code, set(load.answers), load.unanswered) == (0, {"old"}, {}), err
    assert report["datagrams"][0]["given"] > 0
    assert tool.ok("status", endpoint())["groups"][0]["problems"] == []


def test_a_server_that_talks_all_the_time_is_not_waited_for_long(tool: Tool, server: Start) -> None:
    """Datagrams of its own: nobody is served meanwhile."""
    old = server("old", "--polite", "--talk-to", "127.0.0.1")
    with Load() as load:
        code, report, err = run(tool, restart(old), endpoint(), "--settle", "0.2s")
    assert (code, load.unanswered) == (0, {}), err
    assert "still sends datagrams after 1 s" in " ".join(report["warnings"])


def test_a_plain_restart_loses_what_comes_in_the_gap(server: Start) -> None:
    """The arm without the tool."""
    old = server("old", "--polite")
    with Load(patience_s=1.0) as load:
        process = subprocess.Popen(["sh", "-c", restart(old)])
        deadline = time.monotonic() + 20
        while not load.answers["new"] and time.monotonic() < deadline:
            time.sleep(0.01)
        process.wait()
    assert load.answers["new"]
    assert load.lost() > 0


SENT_IN_THE_GAP = """
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range({count}):
    client.sendto(b"x" * {size}, ("{to}", 5500))
"""


def in_the_gap(old: subprocess.Popen[str], tmp_path: Path, after: str = "true", **what: object) -> str:
    """restart(), and the command itself sends when no server runs."""
    script = tmp_path / "send.py"
    script.write_text(SENT_IN_THE_GAP.format(**what))
    stop, _, start = restart(old, "--address", "0.0.0.0", gap_s=0).rpartition("sleep 0;")
    return f"{stop} {sys.executable} {script}; {after}; {start}"


def test_what_has_no_room_is_counted(tool: Tool, server: Start, tmp_path: Path) -> None:
    old = server("old", "--address", "0.0.0.0", "--polite")
    command = in_the_gap(old, tmp_path, count=700, size=60_000, to="127.0.0.1")
    code, report, err = run(tool, command, endpoint("0.0.0.0"))
    [handed_over] = report["datagrams"]
    assert (code, handed_over["not_given"]) == (1, 0), err
    assert handed_over["given"] > 200
    assert handed_over["drops_old"] > 0
    assert handed_over["given"] + handed_over["drops_old"] == 700


def test_what_cannot_be_given_is_counted(tool: Tool, server: Start, tmp_path: Path) -> None:
    """The address that it was sent to is none of this machine any more: it must not leave it."""
    links.veth("near", "far")
    links.give_address("near", "192.0.2.1", 24)
    old = server("old", "--address", "0.0.0.0", "--polite")
    gone = "ip address delete 192.0.2.1/24 dev near"
    command = in_the_gap(old, tmp_path, gone, count=5, size=10, to="192.0.2.1")
    code, report, err = run(tool, command, endpoint("0.0.0.0"))
    [handed_over] = report["datagrams"]
    assert (code, handed_over["given"], handed_over["not_given"]) == (1, 0, 5), err
    assert "5 of 5 datagrams that waited for a server are lost" in " ".join(report["warnings"])


def test_where_nothing_can_be_sent_again_it_is_refused(tool: Tool, server: Start) -> None:
    server("old")
    with no_loopback_delivery():
        error = tool.fails(4, "reload", endpoint(), "--flows", "none", "--run", "true")
    assert "cannot be given to the new one" in error["message"]
    assert tool.ok("status", endpoint())["groups"][0]["program"] is None


@contextlib.contextmanager
def no_loopback_delivery() -> Iterator[None]:
    """The loopback device takes small packets only, and a raw socket does not cut one up."""
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1000"], check=True)
    yield
    subprocess.run(["ip", "link", "set", "lo", "mtu", "65536"], check=True)


def test_what_waited_for_a_server_that_does_not_come_is_reported(tool: Tool, server: Start) -> None:
    old = server("old", "--polite")
    with Load(patience_s=1.0) as load:
        done = tool.run("reload", endpoint(), "--flows", "none", "--run", f"kill {old.pid}; sleep 0.5; exit 3")
    assert done.code == 1, done.err
    assert "nobody serves" in done.error["message"]
    assert done.json["datagrams"][0]["unread"] > 0
    assert load.lost() > 0


def test_a_command_that_fails_at_once_changes_nothing(tool: Tool, server: Start) -> None:
    old = server("old")
    before = buffers(old)
    with Load() as load:
        assert run(tool, "exit 3", endpoint())[0] == 8
    assert (set(load.answers), load.unanswered) == ({"old"}, {})
    assert buffers(old) == before
    assert tool.ok("status", endpoint())["groups"][0]["program"] is None


def buffers(process: subprocess.Popen[str]) -> list[str]:
    """The receive buffers of its UDP sockets, as `ss` shows them."""
    shown = subprocess.run(["ss", "-Huanm"], capture_output=True, text=True, check=True).stdout
    assert process.pid
    return sorted(part for part in shown.replace(",", " ").split() if part.startswith("rb"))


def test_flows_are_refused(tool: Tool, server: Start) -> None:
    server("old")
    for mode in ("address", "quic"):
        error = tool.fails(2, "reload", endpoint(), "--flows", mode, "--run", "true")
        assert "cannot keep the flows" in error["message"]
        assert "beside the old one" in error["hint"]
