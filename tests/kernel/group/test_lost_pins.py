"""Every pin of a group removed by itself, and every two: each verb does the right thing.

The group has two generations with open listeners. In this state every pin counts: whichever is gone, `status` shows
the damage, what would change the group is refused and changes nothing, and `attach --repair` puts all of it back.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.errors import Conflict
from reuseport_tool.group import attach, places, repair, slots
from reuseport_tool.group.layout import EGRESS, FLOW_NAMES, SHAPES
from reuseport_tool.group.state import State
from reuseport_tool.group.status import Observer
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Endpoint, FlowMode, parse_endpoint
from reuseport_tool.record import record
from tests.kernel.conftest import server_command
from tests.tool import Tool

PORT = 9000
TCP, UDP = parse_endpoint(f"127.0.0.1:{PORT}"), parse_endpoint(f"udp://127.0.0.1:{PORT}")
GROUPS = {"tcp": TCP, "udp": UDP, "quic": UDP}
OPTIONS = {"tcp": [], "udp": ["--flows", "address"], "quic": ["--flows", "quic"]}
HOLDER = """
import socket, sys, time
with socket.socket(type=socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 9000))
    if sys.argv[1] == "tcp":
        sock.listen()
    print("ready", flush=True)
    time.sleep(600)
"""
COMMON = ("program", *SHAPES, "generation_1", "generation_2")
PINS = {
    "tcp": COMMON,
    "udp": (*COMMON, *FLOW_NAMES[FlowMode.ADDRESS]),
    "quic": (*COMMON, *FLOW_NAMES[FlowMode.QUIC], EGRESS),
}
# What quic has beside the pins of udp.
SINGLE = [
    (protocol, name)
    for protocol, names in PINS.items()
    for name in names
    if protocol != "quic" or name not in PINS["udp"]
]


@record
class Attached:
    """A group with two generations: generation 1 works, generation 2 has a listener that is being drained."""

    tool: Tool
    group: Endpoint

    @property
    def place(self) -> Place:
        assert self.tool.bpffs is not None
        return places.group_folder(self.tool.bpffs, self.group)

    @property
    def folder(self) -> Path:
        return Path(str(self.place / places.STATE))

    def lose(self, *pins: str) -> None:
        for pin in pins:
            (self.folder / pin).unlink()

    def shown(self) -> Any:
        found = self.tool.ok("status", self.group)["groups"]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def attached(in_netns: None, tool: Tool, spawn: Callable[..., subprocess.Popen[str]]) -> Callable[[str], Attached]:
    def hold(protocol: str) -> None:
        process = spawn(sys.executable, "-c", HOLDER, protocol, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def make(protocol: str) -> Attached:
        made = Attached(tool=tool, group=GROUPS[protocol])
        hold(protocol)
        tool.ok("attach", made.group, *OPTIONS[protocol])
        hold(protocol)
        tool.ok("map", "add", made.group, "--generation", 2)
        assert sorted(os.listdir(made.folder)) == sorted(PINS[protocol])
        assert not made.shown()["problems"]
        return made

    return make


@pytest.mark.parametrize(("protocol", "lost"), SINGLE)
def test_one_pin_is_lost(attached: Callable[[str], Attached], protocol: str, lost: str) -> None:
    group = attached(protocol)
    before = group.shown()
    group.lose(lost)
    shown = group.shown()
    assert [problem["kind"] for problem in shown["problems"]] == ["damaged"]
    assert f"attach {group.group} --repair" in shown["damage"]
    listed = group.tool.ok("map", "list")
    assert (listed["maps"], len(listed["damaged"])) == ([], 1)
    entries = group.tool.ok("sockets", "--endpoint", str(group.group))["sockets"]
    assert len(entries) == 2
    assert {entry["generation"] for entry in entries} == {None}
    left = sorted(os.listdir(group.folder))
    new_side = ("--start-timeout", 5, "--output", "/dev/null", "--", *server_command("new"))
    for verb in (
        ("attach", group.group),
        ("map", "show", group.group),
        ("map", "add", group.group),
        ("reload", group.group, *new_side),
    ):
        error = group.tool.fails(7, *verb)
        assert "--repair" in error["hint"], (verb, error)
        assert sorted(os.listdir(group.folder)) == left
    repaired = group.tool.ok("attach", group.group, "--repair")["attached"][0]
    assert (repaired["result"], repaired["registered"]) == ("repaired", [])
    assert group.shown() == before
    assert sorted(os.listdir(group.folder)) == sorted(PINS[protocol])
    assert group.tool.ok("attach", group.group)["attached"][0]["result"] == "unchanged"
    group.lose(lost)
    assert group.tool.ok("detach", group.group)["detached"][0]["result"] == "detached"
    assert not group.folder.parent.exists()
    assert group.shown()["program"] is None


@pytest.mark.parametrize("protocol", PINS)
def test_every_two_pins_are_lost(attached: Callable[[str], Attached], protocol: str) -> None:
    """By the functions of the verbs, because there are many pairs."""
    group = attached(protocol)
    root = group.tool.bpffs

    def shown() -> Any:
        with Observer(group.group, root) as observer:
            (found,) = observer.read().groups
        return found

    before = shown()
    for pair in itertools.combinations(PINS[protocol], 2):
        group.lose(*pair)
        assert "--repair" in (shown().damage or ""), pair
        assert slots.list_maps(None, root).damaged, pair
        with pytest.raises(Conflict, match="damaged"):
            attach.attach(group.group, None, None, root)
        (report,) = repair.repair(group.group, root).attached
        assert (report.result, report.registered) == ("repaired", ()), pair
        assert shown() == before, pair
        assert sorted(os.listdir(group.folder)) == sorted(PINS[protocol])


@pytest.mark.parametrize("protocol", PINS)
def test_every_pin_is_lost(attached: Callable[[str], Attached], protocol: str) -> None:
    """Also with the folder itself: the program is found by its id."""
    group = attached(protocol)
    before = group.shown()
    for lose in (lambda: group.lose(*PINS[protocol]), lambda: shutil.rmtree(group.folder)):
        lose()
        assert "--repair" in group.shown()["damage"]
        assert group.tool.ok("attach", group.group, "--repair")["attached"][0]["result"] == "repaired"
        assert group.shown() == before


def test_a_pin_of_another_group_in_place_of_ours(attached: Callable[[str], Attached]) -> None:
    """It has the right shape, and is not the map that the program works with."""
    group = attached("tcp")
    with State.open(group.place) as opened:
        working = opened.choice.working
    group.tool.ok("attach", attached("udp").group)
    (Path(str(places.group_folder(Path(str(group.tool.bpffs)), GROUPS["udp"]))) / "state" / "choice").rename(
        group.folder / "choice"
    )
    assert group.shown()["damage"]
    group.tool.ok("attach", group.group, "--repair")
    assert group.shown()["working_generation"] == working


def test_flows_that_the_program_does_not_use(attached: Callable[[str], Attached]) -> None:
    """A killed run has made their maps and not loaded the program: they are no flows, and `attach` makes them."""
    group = attached("udp")
    group.tool.ok("attach", group.group, "--flows", "none")
    with State.open(group.place) as opened:
        opened.flows.add(FlowMode.ADDRESS, 64)
    shown = group.shown()
    assert (shown["flows"], shown["problems"]) == (None, [])
    assert group.tool.ok("attach", group.group, "--flows", "address")["attached"][0]["result"] == "replaced"
    assert group.shown()["flows"]["capacity"] > 64
