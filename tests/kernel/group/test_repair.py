"""Pins that are lost, damaged, or of namespaces that are gone: every verb says so, and some verb mends it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.group import places, repair
from reuseport_tool.kernel import netns
from reuseport_tool.models import parse_endpoint
from tests.kernel.conftest import PORT, ask
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
GROUP = parse_endpoint(f"127.0.0.1:{PORT}")
PINNED = ("program", "choice", "members", "generations", "counters", "cursors", "generation_1")


def group(tool: Tool) -> dict[str, Any]:
    found: dict[str, Any] = tool.ok("status", PORT)["groups"][0]
    return found


def folder(tool: Tool) -> Path:
    assert tool.bpffs is not None
    return Path(str(places.group_folder(tool.bpffs, GROUP)))


def lose(tool: Tool, what: str) -> None:
    path = folder(tool) / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("lost", ["state", *(f"state/{name}" for name in PINNED)])
def test_repair_pins_anew_what_runs(tool: Tool, server: Start, lost: str) -> None:
    server("one", "--listeners", 2)
    tool.ok("attach", PORT, "--policy", "round-robin")
    ask()
    before = group(tool)
    lose(tool, lost)
    if lost != "state/generation_1":
        assert [problem["kind"] for problem in group(tool)["problems"]] == ["damaged"]
    report = tool.ok("attach", PORT, "--repair")["attached"][0]
    assert (report["result"], report["registered"]) == ("repaired", [])
    after = group(tool)
    assert after["program"] == before["program"]
    assert after["listeners"] == before["listeners"]
    assert after["counters"] == before["counters"]
    assert not after["problems"]
    assert tool.ok("attach", PORT, "--repair")["attached"][0]["result"] == "unchanged"
    server("two")
    assert len(tool.ok("attach", PORT)["attached"][0]["registered"]) == 1
    assert {ask() for _ in range(12)} == {"one", "two"}
    tool.ok("detach", PORT)
    assert not folder(tool).exists()


@pytest.mark.parametrize("lost", ["state", *(f"state/{name}" for name in PINNED)])
def test_detach_takes_it_off_whatever_is_lost(tool: Tool, server: Start, lost: str) -> None:
    server("one")
    tool.ok("attach", PORT)
    lose(tool, lost)
    assert tool.ok("detach", PORT)["detached"][0]["result"] == "detached"
    assert group(tool)["program"] is None
    assert tool.ok("attach", PORT)["attached"][0]["result"] == "attached"


def test_attach_says_what_mends_lost_pins(tool: Tool, server: Start) -> None:
    server("one")
    tool.ok("attach", PORT)
    lose(tool, "state")
    error = tool.fails(7, "attach", PORT)
    assert f"attach {GROUP} --repair" in error["hint"]
    assert f"detach {GROUP}" in error["hint"]
    lost = group(tool)
    assert lost["program"]["policy"] == "hash"
    assert "--repair" in lost["damage"]


def test_damaged_pins_of_a_group_without_a_program_are_replaced(tool: Tool, server: Start) -> None:
    process = server("one")
    tool.ok("attach", PORT)
    process.kill()
    process.wait()
    lose(tool, "state/counters")
    server("two")
    assert tool.ok("attach", PORT)["attached"][0]["result"] == "attached"
    assert not group(tool)["problems"]


def test_repair_leaves_a_foreign_program_alone(tool: Tool, server: Start) -> None:
    with socket.create_server(("127.0.0.1", PORT), reuse_port=True) as listener:
        code = ctypes.create_string_buffer(b"\x06\0\0\0\0\0\0\0")
        program = (1).to_bytes(8, "little") + ctypes.addressof(code).to_bytes(8, "little")
        listener.setsockopt(socket.SOL_SOCKET, 51, program)
        tool.fails(7, "attach", PORT, "--repair")
        assert group(tool)["program"]["name"] == "(classic BPF)"


def test_one_damaged_group_keeps_nobody_from_the_others(tool: Tool, server: Start) -> None:
    server("one")
    server("other", port=PORT + 1)
    for port in (PORT, PORT + 1):
        tool.ok("attach", port)
    lose(tool, "state/cursors")
    shown = {entry["endpoint"]: entry for entry in tool.ok("status")["groups"]}
    assert shown[str(GROUP)]["damage"]
    assert shown[f"tcp://127.0.0.1:{PORT + 1}"]["program"]["policy"] == "hash"
    listed = tool.ok("map", "list")
    assert [entry["endpoint"] for entry in listed["maps"]] == [f"tcp://127.0.0.1:{PORT + 1}"]
    assert len(listed["damaged"]) == 1
    tool.fails(7, "map", "show", PORT)
    found = {entry["local"]: entry["generation"] for entry in tool.ok("sockets", "--state", "listen")["sockets"]}
    assert found == {f"127.0.0.1:{PORT}": None, f"127.0.0.1:{PORT + 1}": 1}


def test_what_was_attached_before_an_error_is_told(tool: Tool, server: Start) -> None:
    server("one")
    tool.ok("status")  # gives it its cookie, by which groups are ordered
    server("other", "--address", "127.0.0.2", "--no-reuseport")
    done = tool.run("attach", PORT)
    assert done.code == 1
    assert f"{GROUP} attached" in done.error["message"]
    assert [entry["endpoint"] for entry in done.json["attached"]] == [str(GROUP)]
    server("third", "--address", "127.0.0.3")
    tool.ok("attach", f"127.0.0.3:{PORT}")


@pytest.mark.parametrize(
    ("index", "newest", "number"),
    [(1, 1, 1), (0, 16, 16), (1, 17, 17), (2, 17, 2), (15, 17, 15), (0, 31, 16), (2, 1, 2)],
)
def test_the_number_of_a_generation(index: int, newest: int, number: int) -> None:
    assert repair.number_of(index, newest) == number


KILLED = """
import os, sys
from pathlib import Path
from typing import Any
from reuseport_tool.group import detach, places
from reuseport_tool.kernel import folders
from reuseport_tool.models import parse_endpoint
left = int(sys.argv[2])
for name in ("unlink", "rmdir", "rename"):
    def counted(*arguments, _real=getattr(os, name), **options):
        global left
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1
        return _real(*arguments, **options)
    setattr(os, name, counted)
detach.detach(parse_endpoint(sys.argv[3]), Path(sys.argv[1]))
"""


def test_killed_between_any_two_unlinks(tool: Tool, server: Start) -> None:
    """Whatever a killed detach leaves, the next verb understands."""
    server("one")
    for left in range(40):
        tool.ok("attach", PORT)
        done = subprocess.run([sys.executable, "-c", KILLED, str(tool.bpffs), str(left), str(PORT)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert not group(tool)["damage"]
        if left % 2:
            tool.run("detach", PORT)
            assert group(tool)["program"] is None
    else:
        pytest.fail("detach never came to its end")
    assert left > 8
    assert not (folder(tool).parents[1]).exists()


def test_pins_of_a_namespace_that_is_gone(tool: Tool, bpffs: Path, server: Start) -> None:
    server("one")
    tool.ok("attach", PORT)
    with netns.throw_away():
        there = netns.key()
        with socket.create_server(("127.0.0.1", PORT), reuse_port=True):
            tool.ok("attach", PORT)
            assert tool.ok("status")["gone"] == []
        assert tool.ok("status")["gone"] == []  # somebody is still in it
    deadline = time.monotonic() + 20
    while not (gone := tool.ok("status")["gone"]):
        assert time.monotonic() < deadline
    assert [entry["endpoint"] for entry in gone] == [str(GROUP)]
    assert f"/{there}/" in gone[0]["pins"]
    assert tool.ok("detach", "--gone")["detached"] == [
        {"endpoint": str(GROUP), "result": "gone", "pins": gone[0]["pins"]}
    ]
    assert tool.ok("status")["gone"] == []
    assert tool.ok("detach", "--gone")["detached"] == []
    assert group(tool)["program"]["policy"] == "hash"
    assert os.listdir(bpffs / "reuseport-tool") == [netns.key()]
