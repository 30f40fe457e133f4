"""attach, detach, status and the lock, against small servers."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from reuseport_tool.group import attach, places
from reuseport_tool.kernel import bpf, program
from reuseport_tool.models import Policy, parse_endpoint
from tests.kernel.conftest import PORT, Clients, ask, snapshot
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
GROUP = parse_endpoint(f"127.0.0.1:{PORT}")


def group(tool: Tool) -> dict:  # type: ignore[type-arg]
    return tool.ok("status", PORT)["groups"][0]


@pytest.mark.vm
def test_attach_and_detach(tool: Tool, server: Start) -> None:
    process = server("one", "--listeners", 3)
    before = snapshot(tool)
    report = tool.ok("attach", PORT)["attached"][0]
    assert report["result"] == "attached"
    assert len(report["registered"]) == 3
    shown = group(tool)
    assert shown["program"]["policy"] == "hash"
    assert shown["working_generation"] == 1
    assert sorted(listener["slot"] for listener in shown["listeners"]) == [0, 1, 2]
    assert {listener["pid"] for listener in shown["listeners"]} == {process.pid}
    assert ask() == "one"
    assert group(tool)["counters"]["selected"] == 1
    assert tool.ok("detach", PORT)["detached"][0]["result"] == "detached"
    assert snapshot(tool) == before
    assert ask() == "one"


def test_attach_again_says_so_and_registers_what_came(tool: Tool, server: Start) -> None:
    server("one")
    tool.ok("attach", PORT)
    before = snapshot(tool)
    report = tool.ok("attach", PORT)["attached"][0]
    assert (report["result"], report["registered"]) == ("unchanged", [])
    assert snapshot(tool) == before
    server("two")
    assert {listener["flag"] for listener in group(tool)["listeners"]} == {"working", "foreign"}
    assert {ask() for _ in range(50)} == {"one"}
    assert len(tool.ok("attach", PORT)["attached"][0]["registered"]) == 1
    assert {ask() for _ in range(50)} == {"one", "two"}


POLICIES = ["hash", "round-robin", "cpu", "source-ip"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_policies_choose_members_only(tool: Tool, server: Start, policy: str, address: str) -> None:
    for name in "abc":
        server(name, "--address", address)
    tool.ok("attach", PORT, "--policy", policy)
    server("stranger", "--address", address)
    answers = Counter(ask(address=address) for _ in range(60))
    assert set(answers) <= set("abc")
    assert group(tool)["counters"]["selected"] >= 60
    if policy == "round-robin":
        assert answers == {"a": 20, "b": 20, "c": 20}
    if policy == "source-ip":
        assert len(answers) == 1
    if policy == "hash":
        assert len(answers) == 3


def test_many_groups_share_one_compiled_policy(
    tool: Tool, server: Start, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "::1")
    for address in addresses:
        server(address, "--address", address)
    compiled = []

    class Module(program.Module):
        def __init__(self, source: program.Source) -> None:
            compiled.append(source.path.stem)
            super().__init__(source)

    monkeypatch.setattr(program, "Module", Module)
    report = attach.attach(parse_endpoint(str(PORT)), Policy.SOURCE_IP, None, bpffs)
    assert [attached.result for attached in report.attached] == ["attached"] * len(addresses)
    assert compiled.count("source_ip") == 1
    assert [ask(address=address) for address in addresses] == list(addresses)
    counters = [group["counters"]["selected"] for group in tool.ok("status", PORT)["groups"]]
    assert counters == [1] * len(addresses)


def test_source_ip_spreads_clients(tool: Tool, server: Start) -> None:
    for name in "abcd":
        server(name, "--address", "0.0.0.0")
    tool.ok("attach", PORT, "--policy", "source-ip")
    answers = Counter()
    for last in range(1, 101):
        with socket.create_connection(("127.0.0.1", PORT), source_address=(f"127.0.1.{last}", 0)) as client:
            client.sendall(b"x")
            answers[client.recv(64)] += 1
    assert len(answers) == 4
    assert max(answers.values()) < 60


def test_changing_the_policy_keeps_the_generation(tool: Tool, server: Start) -> None:
    server("one")
    tool.ok("attach", PORT)
    report = tool.ok("attach", PORT, "--policy", "round-robin")["attached"][0]
    assert (report["result"], report["generation"], report["registered"]) == ("replaced", 1, [])
    assert group(tool)["program"]["policy"] == "round-robin"
    assert tool.ok("attach", PORT)["attached"][0]["result"] == "unchanged"


def test_a_policy_of_ones_own(tool: Tool, server: Start, tmp_path: Path) -> None:
    processes = {name: server(name) for name in "ab"}
    source = tmp_path / "second_slot.c"
    source.write_text('#include "reuseport.h"\nREUSEPORT_POLICY(second_slot)\n{\n\treturn 1;\n}\n')
    tool.ok("attach", PORT, "--program", source)
    assert group(tool)["program"]["name"] == "second_slot"
    second = next(listener for listener in group(tool)["listeners"] if listener["slot"] == 1)
    assert {processes[ask()].pid for _ in range(20)} == {second["pid"]}


def test_a_policy_can_refuse(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("one")
    source = tmp_path / "nobody.c"
    source.write_text('#include "reuseport.h"\nREUSEPORT_POLICY(nobody)\n{\n\treturn REUSEPORT_DROP;\n}\n')
    tool.ok("attach", PORT, "--program", source)
    with pytest.raises(OSError, match="refused"):
        ask()
    assert group(tool)["counters"]["dropped"] == 1


BAD_SOURCES = {
    "syntax": ('#include "reuseport.h"\nREUSEPORT_POLICY(bad)\n{\n\treturn 1\n}\n', "expected ';'"),
    "other name": ('#include "reuseport.h"\nREUSEPORT_POLICY(good)\n{\n\treturn 1;\n}\n', "no program named bad"),
    "verifier": (
        '#include "reuseport.h"\nREUSEPORT_POLICY(bad)\n{\n\treturn *(u32 *)(ctx->hash * 8ULL);\n}\n',
        "verifier rejected bad",
    ),
    "crash": (
        '#include "reuseport.h"\nREUSEPORT_POLICY(bad)\n{\n\tu32 key = 0, *v;\n'
        "\tv = bpf_map_lookup_elem(cursors_map, &key);\n"
        "\treturn v ? __sync_fetch_and_add(v, 1) : 0;\n}\n",
        "does not compile",
    ),
}


@pytest.mark.parametrize("attached", [False, True], ids=["fresh", "attached"])
@pytest.mark.parametrize("bad", BAD_SOURCES)
def test_a_bad_program_is_rejected(tool: Tool, server: Start, tmp_path: Path, bad: str, attached: bool) -> None:
    server("one")
    if attached:
        tool.ok("attach", PORT)
    before = snapshot(tool)
    source = tmp_path / "bad.c"
    text, message = BAD_SOURCES[bad]
    source.write_text(text)
    error = tool.fails(5, "attach", PORT, "--program", source)
    assert message in error["message"]
    assert error["log"] is None
    verbose = tool.fails(5, "--verbose", "attach", PORT, "--program", source)
    assert verbose["log"] or bad == "other name"
    assert snapshot(tool) == before
    assert ask() == "one"


def test_an_unknown_file_is_a_usage_error(tool: Tool, server: Start) -> None:
    server("one")
    tool.fails(2, "attach", PORT, "--program", "/no/such/file.c")
    tool.fails(2, "attach", PORT, "--policy", "random")


def test_nothing_listens(tool: Tool, server: Start) -> None:
    server("one")
    error = tool.fails(6, "attach", f"127.0.0.2:{PORT}")
    assert f"127.0.0.1:{PORT}" in error["hint"]
    tool.fails(6, "attach", PORT + 1)
    tool.fails(6, "status", PORT + 1)
    tool.fails(6, "detach", PORT)


def test_a_listener_without_reuseport(tool: Tool, server: Start) -> None:
    server("one", "--no-reuseport")
    error = tool.fails(1, "attach", PORT)
    assert "SO_REUSEPORT" in error["message"]
    assert tool.ok("status")["groups"] == []


def test_a_foreign_program_is_left_alone(tool: Tool, server: Start) -> None:
    with socket.create_server(("127.0.0.1", PORT), reuse_port=True) as listener:
        # SO_ATTACH_REUSEPORT_CBPF with one instruction: return 0.
        instruction = b"\x06\0\0\0\0\0\0\0"
        import ctypes

        code = ctypes.create_string_buffer(instruction)
        program = (1).to_bytes(8, "little") + ctypes.addressof(code).to_bytes(8, "little")
        listener.setsockopt(socket.SOL_SOCKET, 51, program)
        server("one")
        assert "classic BPF" in tool.fails(7, "attach", PORT)["message"]
        assert group(tool)["program"] == {"id": 0, "name": "(classic BPF)", "policy": None}


def test_the_lock(tool: Tool, server: Start) -> None:
    server("one")
    assert tool.bpffs is not None
    folder = places.group_folder(tool.bpffs, GROUP)
    folder.make()
    fd = os.open(str(folder), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert f"process {os.getpid()}" in tool.fails(7, "attach", PORT)["message"]
    waiting = subprocess.Popen(tool.command("attach", PORT, "--wait", 30), stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1)
    os.close(fd)
    assert waiting.wait(timeout=30) == 0


def test_pins_left_by_an_ended_server_are_stale(tool: Tool, server: Start) -> None:
    process = server("one")
    tool.ok("attach", PORT)
    process.kill()
    process.wait()
    assert group(tool)["stale"]
    assert group(tool)["listeners"] == []
    server("two")
    assert group(tool)["stale"]
    assert tool.ok("attach", PORT)["attached"][0]["result"] == "attached"
    assert not group(tool)["stale"]
    assert ask() == "two"


def test_detach_cleans_what_an_ended_server_left(tool: Tool, server: Start) -> None:
    process = server("one")
    before = snapshot(tool)
    tool.ok("attach", PORT)
    process.kill()
    process.wait()
    assert tool.ok("detach", PORT)["detached"][0]["result"] == "cleaned"
    assert snapshot(tool)[1] == before[1]


def test_a_killed_policy_change_is_settled(tool: Tool, server: Start) -> None:
    """The pins as a run leaves them that dies between attaching the new program and renaming its pin."""
    server("one")
    tool.ok("attach", PORT, "--policy", "round-robin")
    assert tool.bpffs is not None
    pins = next(tool.bpffs.rglob("state"))
    tool.ok("attach", PORT, "--policy", "hash")
    with bpf.Program.open(str(pins / "program")) as running:
        running.pin(str(pins / "program_next"))
        assert tool.ok("attach", PORT)["attached"][0]["result"] == "unchanged"
        assert not (pins / "program_next").exists()
        with bpf.Program.open(str(pins / "program")) as settled:
            assert settled.info().id == running.info().id


def test_a_generation_that_died_falls_back(tool: Tool, server: Start) -> None:
    first = server("first")
    tool.ok("attach", PORT)
    server("second")
    first.kill()
    first.wait()
    assert ask() == "second"
    assert group(tool)["counters"]["fallback"] == 1


def test_a_dead_member_is_skipped(tool: Tool, server: Start) -> None:
    servers = [server(name) for name in "abc"]
    tool.ok("attach", PORT, "--policy", "round-robin")
    servers[1].kill()
    servers[1].wait()
    assert {ask() for _ in range(30)} == {"a", "c"}
    assert group(tool)["counters"]["fallback"] == 0


def test_udp_is_selected(tool: Tool, server: Start) -> None:
    server("udp", "--udp", "--deaf", "--listeners", 2)
    tool.ok("attach", f"udp://{PORT}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", PORT))
    shown = tool.ok("status", f"udp://{PORT}")["groups"][0]
    assert shown["counters"]["selected"] == 1
    assert shown["listeners"][0]["accept_queue"] is None
    tool.ok("detach", f"udp://{PORT}")


@pytest.mark.vm
def test_status_shows_queues_and_half_open(tool: Tool, server: Start, clients: Clients) -> None:
    server("one", "--deaf", "--backlog", 77)
    clients.connect(5)
    listener = group(tool)["listeners"][0]
    assert (listener["accept_queue"], listener["backlog"], listener["half_open"]) == (5, 77, 0)
    assert listener["command"].startswith("python")
