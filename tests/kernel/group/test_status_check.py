"""`status --check`, `metrics` and `detach --all` against listeners of the test's own process."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.conftest import PORT
from tests.tool import Tool

ADDRESS = "127.0.0.1"
BACKLOG = 24
QUEUED = 20


def listener(stack: ExitStack, port: int = PORT) -> socket.socket:
    return stack.enter_context(socket.create_server((ADDRESS, port), reuse_port=True, backlog=BACKLOG))


def test_a_listener_that_nobody_registered_is_foreign(tool: Tool) -> None:
    with ExitStack() as stack:
        listener(stack)
        tool.ok("attach", PORT)
        assert tool.run("status", "--check").code == 0
        listener(stack)
        done = tool.run("status", "--check")
        assert done.code == 1
        ((problem,),) = [group["problems"] for group in done.json["groups"]]
        assert problem["kind"] == "foreign"
        assert tool.run("status").code == 0
        tool.ok("attach", PORT)
        assert tool.run("status", "--check").code == 0


def test_one_busy_listener_beside_idle_ones_is_an_imbalance(tool: Tool) -> None:
    with ExitStack() as stack:
        listener(stack)
        for _ in range(QUEUED):
            stack.enter_context(socket.create_connection((ADDRESS, PORT)))
        assert tool.run("status", PORT, "--check").code == 0
        listener(stack)
        done = tool.run("status", PORT, "--check")
        assert done.code == 1
        assert done.json["groups"][0]["problems"][0]["kind"] == "imbalance"


def test_pins_without_a_program_are_stale(tool: Tool) -> None:
    with ExitStack() as stack:
        listener(stack)
        tool.ok("attach", PORT)
    with ExitStack() as stack:
        listener(stack)
        done = tool.run("status", "--check")
        assert done.code == 1
        assert [problem["kind"] for problem in done.json["groups"][0]["problems"]] == ["stale"]


def test_metrics_are_those_of_status(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "reuseport.prom"
    with ExitStack() as stack:
        listener(stack)
        tool.ok("attach", PORT)
        stack.enter_context(socket.create_connection((ADDRESS, PORT)))
        assert tool.run("metrics", "--textfile", file).out == ""
        printed = tool.run("metrics", PORT).out
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == [file.name] or set(os.listdir(tmp_path)) == {file.name, "bpffs"}
    for text in (file.read_text(), printed):
        found = {
            sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        }
        assert found["reuseport_listener_accept_queue"] == 1
        assert found["reuseport_listener_backlog"] == BACKLOG
        selected = [line for line in text.splitlines() if line.startswith("reuseport_group_selected_total")]
        assert sum(float(line.rpartition(" ")[2]) for line in selected) == 1


def test_detach_all(tool: Tool) -> None:
    assert tool.ok("detach", "--all") == {"detached": []}
    with ExitStack() as stack:
        for port in (PORT, PORT + 1):
            listener(stack, port)
            tool.ok("attach", port)
        assert len(tool.ok("detach", "--all")["detached"]) == 2
        assert all(group["program"] is None for group in tool.ok("status")["groups"])
    tool.fails(2, "detach")
    tool.fails(2, "detach", PORT, "--all")


def test_a_textfile_in_a_missing_folder_has_a_hint(tool: Tool, tmp_path: Path) -> None:
    error = tool.fails(1, "metrics", "--textfile", tmp_path / "no" / "reuseport.prom")
    assert f"there is no folder {tmp_path / 'no'}" in error["message"]
    assert "make it first" in error["hint"]
