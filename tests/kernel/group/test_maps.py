"""The sockarrays by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from reuseport_tool.group.layout import CAPACITY_LEAST
from tests.kernel.conftest import PORT, ask, snapshot
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def attached(tool: Tool, server: Start) -> subprocess.Popen[str]:
    process = server("one", "--listeners", 2)
    tool.ok("attach", PORT)
    return process


def slots(tool: Tool, generation: int = 1) -> dict[int, int]:
    maps = tool.ok("map", "show", PORT)["maps"]
    return {
        slot["slot"]: slot["cookie"] for entry in maps if entry["generation"] == generation for slot in entry["slots"]
    }


def cookies(tool: Tool, pid: int) -> list[int]:
    return [entry["cookie"] for entry in tool.ok("status", PORT)["groups"][0]["listeners"] if entry["pid"] == pid]


def test_cookies_are_those_of_the_listeners(tool: Tool, attached: subprocess.Popen[str]) -> None:
    assert sorted(slots(tool).values()) == cookies(tool, attached.pid)
    assert tool.ok("map", "list") == tool.ok("map", "show", PORT)


def test_add_by_pid_cookie_and_slot(tool: Tool, server: Start, attached: subprocess.Popen[str]) -> None:
    two, three = server("two"), server("three", "--listeners", 2)
    change = tool.ok("map", "add", PORT, "--pid", two.pid, "--slot", 7)["changes"][0]
    assert (change["slot"], change["generation"]) == (7, 1)
    cookie = cookies(tool, three.pid)[1]
    assert tool.ok("map", "add", PORT, "--cookie", cookie)["changes"][0]["slot"] == 2
    assert len(tool.ok("map", "add", PORT)["changes"]) == 1
    assert sorted(slots(tool)) == [0, 1, 2, 3, 7]
    tool.fails(6, "map", "add", PORT)


def test_remove_takes_a_listener_out(tool: Tool, server: Start, attached: subprocess.Popen[str]) -> None:
    two = server("two")
    tool.ok("map", "add", PORT, "--pid", two.pid)
    for slot in (0, 1):
        tool.ok("map", "remove", PORT, "--generation", 1, "--slot", slot)
    assert {ask() for _ in range(30)} == {"two"}
    tool.fails(6, "map", "remove", PORT, "--generation", 1, "--slot", 0)


def test_switch(tool: Tool, server: Start, attached: subprocess.Popen[str]) -> None:
    two = server("two")
    tool.ok("map", "add", PORT, "--pid", two.pid, "--generation", 5)
    assert {ask() for _ in range(30)} == {"one"}
    tool.ok("map", "switch", PORT, 5)
    assert {ask() for _ in range(30)} == {"two"}
    two.kill()
    two.wait()
    tool.ok("map", "switch", PORT, 1)
    tool.fails(7, "map", "switch", PORT, 5)
    tool.ok("map", "switch", PORT, 5, "--force")
    assert ask() == "one"


def test_what_does_not_fit_changes_nothing(tool: Tool, server: Start, attached: subprocess.Popen[str]) -> None:
    ended = server("ended")
    ended.kill()
    ended.wait()
    udp = server("udp", "--udp", "--deaf")
    before = snapshot(tool)
    first = cookies(tool, attached.pid)[0]
    tool.fails(6, "map", "add", PORT, "--pid", ended.pid)
    assert "its own group only" in tool.fails(6, "map", "add", PORT, "--pid", udp.pid)["hint"]
    tool.fails(6, "map", "add", PORT, "--cookie", 2**40)
    tool.fails(7, "map", "add", PORT, "--cookie", first, "--slot", 9)
    tool.fails(6, "map", "switch", PORT, 9)
    tool.fails(6, "map", "remove", PORT, "--generation", 9, "--slot", 0)
    tool.fails(2, "map", "remove", PORT, "--generation", 1, "--slot", CAPACITY_LEAST)
    tool.fails(6, "map", "show", PORT + 1)
    assert snapshot(tool) == before


def test_a_new_listener_in_a_bad_slot(tool: Tool, server: Start, attached: subprocess.Popen[str]) -> None:
    two = server("two")
    before = snapshot(tool)
    refused = tool.fails(2, "map", "add", PORT, "--pid", two.pid, "--slot", CAPACITY_LEAST)
    assert f"0 to {CAPACITY_LEAST - 1}" in refused["hint"]
    tool.fails(7, "map", "add", PORT, "--pid", two.pid, "--slot", 0)
    assert snapshot(tool) == before
