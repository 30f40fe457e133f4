"""Groups are told apart as the kernel tells them apart, and found by whatever a person types."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.conftest import PORT
from tests.kernel.follow.test_listen_events import bind
from tests.kernel.needs import KernelTooOld
from tests.tool import Tool

IPPROTO_MPTCP = 262


@pytest.fixture
def opened(in_netns: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def endpoints(tool: Tool, *words: object) -> list[str]:
    return sorted(group["endpoint"] for group in tool.ok("status", *words)["groups"])


def test_both_groups_of_the_ipv6_wildcard_have_names_and_pins_of_their_own(tool: Tool, opened: ExitStack) -> None:
    dual, only = f"tcp://[::]:{PORT}", f"tcp://[::]:{PORT},v6only"
    for v6only in (False, True, True):
        opened.enter_context(bind("::", v6only=v6only))
    assert endpoints(tool) == [dual, only]
    attached = tool.ok("attach", only)["attached"]
    assert [(entry["endpoint"], len(entry["registered"])) for entry in attached] == [(only, 2)]
    groups = {group["endpoint"]: group for group in tool.ok("status", PORT)["groups"]}
    assert groups[dual]["program"] is None
    assert groups[only]["program"]["policy"] == "hash"
    tool.ok("attach", PORT)
    tool.ok("detach", dual)
    assert [group["endpoint"] for group in tool.ok("status")["groups"] if group["program"]] == [only]


def test_an_ipv6_only_group_is_found_by_its_plain_address(tool: Tool, opened: ExitStack) -> None:
    opened.enter_context(bind("::", v6only=True))
    for text in (f"[::]:{PORT}", f":::{PORT}", f"*:{PORT}", f":{PORT}", f"[0:0::0]:{PORT}"):
        assert endpoints(tool, text) == [f"tcp://[::]:{PORT},v6only"]


@pytest.mark.parametrize("text", ["127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0::FFFF:127.0.0.1]"])
def test_a_mapped_address_is_found_by_any_spelling(tool: Tool, opened: ExitStack, text: str) -> None:
    name = f"tcp://[::ffff:127.0.0.1]:{PORT}"
    opened.enter_context(bind("::ffff:127.0.0.1"))
    assert endpoints(tool) == [name]
    assert endpoints(tool, f"{text}:{PORT}") == [name]
    assert tool.ok("attach", f"{text}:{PORT}")["attached"][0]["endpoint"] == name
    assert [row["local"] for row in tool.ok("sockets", "--endpoint", f"{text}:{PORT}")["sockets"]] == [name[6:]]
    tool.ok("detach", f"{text}:{PORT}")


def test_the_group_without_a_device_is_meant_by_its_name(tool: Tool, opened: ExitStack) -> None:
    name = f"tcp://127.0.0.1:{PORT}"
    opened.enter_context(bind("127.0.0.1", device="lo"))
    assert endpoints(tool, name) == [f"tcp://127.0.0.1%lo:{PORT}"]
    opened.enter_context(bind("127.0.0.1"))
    assert endpoints(tool, name) == [name]
    assert endpoints(tool, PORT) == [f"tcp://127.0.0.1%lo:{PORT}", name]


def test_a_port_without_reuseport_is_shown_as_such(tool: Tool, opened: ExitStack) -> None:
    opened.enter_context(bind("127.0.0.1", reuseport=False))
    assert endpoints(tool) == []
    assert tool.ok("status", PORT)["groups"][0]["reuseport"] is False
    assert "no SO_REUSEPORT" in tool.run("status", PORT, as_json=False).out


def listen_with_mptcp() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as error:
        raise KernelTooOld(f"the kernel has no MPTCP: {error}") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", PORT))
    sock.listen(8)
    return sock


BY_SYSCTL = ("reload", "--strategy", "sysctl", "--run", "true")


@pytest.mark.parametrize(
    "words",
    [("attach",), ("reload", "--run", "true"), pytest.param(BY_SYSCTL, marks=pytest.mark.needs("migration by sysctl"))],
)
def test_mptcp_is_named_with_the_way_out(tool: Tool, opened: ExitStack, words: tuple[str, ...]) -> None:
    opened.enter_context(listen_with_mptcp())
    group = tool.ok("status", PORT)["groups"][0]
    assert group["mptcp"]
    assert "MPTCP" in tool.run("status", PORT, as_json=False).out
    error = tool.fails(4, words[0], PORT, *words[1:])
    assert "MPTCP" in error["message"]
    assert "GODEBUG=multipathtcp=0" in error["hint"]
    assert "net.mptcp.enabled=0" in error["hint"]
