"""What a reload says of resets is what the kernel did: lost, the server's own doing, or the tool's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT, Clients, server_command
from tests.tool import Tool

pytestmark = [
    pytest.mark.needs("tcp_send_reset", "migration by program", "migration wakes readers"),
    pytest.mark.usefixtures("end_owners"),
]
DEADLINE_S = 20.0
QUEUED = 7

# Accepts and never reads: whoever ends it has the kernel reset what it holds.
UNREAD = f"""
import socket
listener = socket.create_server(("127.0.0.1", {PORT}), reuse_port=True)
print("ready", flush=True)
held = []
while True:
    held.append(listener.accept())
"""
# A second address on the same port, which no other server can take over.
ALONE = f"""
import signal, socket
group = socket.create_server(("127.0.0.1", {PORT}), reuse_port=True)
alone = socket.create_server(("127.0.0.2", {PORT}))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def program(in_netns: None, spawn: Callable[..., subprocess.Popen[str]]) -> Callable[[str], subprocess.Popen[str]]:
    def start(text: str) -> subprocess.Popen[str]:
        process = spawn(sys.executable, "-c", text, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return start


def queued(tool: Tool) -> int:
    return sum(entry["accept_queue"] for group in tool.ok("status", PORT)["groups"] for entry in group["listeners"])


def balance(report: Any) -> tuple[int, int]:
    """Both sides of the addition."""
    found = report["balance"]
    gone = found["moved"] + found["old_side"] + found["lost"] + found["half_open"]
    return found["waiting"] + found["later"], gone


def test_what_the_old_server_had_accepted_is_its_own_doing(
    tool: Tool, program: Callable[[str], Any], clients: Clients
) -> None:
    program(UNREAD)
    clients.connect(9)
    assert wait_until(lambda: queued(tool) == 0, DEADLINE_S)
    report = tool.ok("reload", PORT, "--", *server_command("new"))
    assert clients.answers() == {"reset": 9}
    resets = report["resets"]
    assert (resets["accepted"], resets["never_accepted"], resets["handshakes"]) == (9, 0, 0)
    assert report["balance"]["lost"] == 0


def test_what_moves_is_not_reset_and_the_report_adds_up(
    tool: Tool, server: Callable[..., Any], clients: Clients
) -> None:
    server("old", "--deaf")
    clients.connect(25)
    report = tool.ok("reload", PORT, "--no-probe", "--", *server_command("new"))
    assert clients.answers() == {"new": 25}
    assert [report["balance"][name] for name in ("waiting", "later", "moved", "old_side", "lost")] == [25, 0, 25, 0, 0]
    assert balance(report) == (25, 25)
    assert (report["resets"]["never_accepted"], report["resets"]["accepted"]) == (0, 0)


def test_a_loss_that_no_counter_of_the_kernel_shows_ends_with_exit_code_1(
    tool: Tool, program: Callable[[str], Any], clients: Clients
) -> None:
    program(ALONE)
    clients.connect(5, address="127.0.0.2")
    done = tool.run("reload", f"127.0.0.1:{PORT}", "--no-probe", "--force", "--", *server_command("new"))
    assert clients.answers() == {"reset": 5}
    report = done.json
    assert report["lost"]["migrate_failures"] == 0
    assert report["resets"]["never_accepted"] == 5
    assert done.code == 1


def test_what_is_lost_as_the_tool_lets_go_of_the_last_copies_is_counted(
    tool: Tool, server: Callable[..., subprocess.Popen[str]], clients: Clients
) -> None:
    """--run stops the old server, and then fails: nobody is left to answer what waits at the copies."""
    old = server("old", "--deaf")
    clients.connect(QUEUED)
    done = tool.run("reload", PORT, "--run", f"kill {old.pid}; exit 3")
    assert done.code == 1, done.err
    assert done.json["result"] == "failed"
    assert done.json["resets"]["never_accepted"] == QUEUED
    message = done.error["message"]
    assert f"nobody serves tcp://127.0.0.1:{PORT}" in message
    assert f"{QUEUED} waiting connections were reset" in message
    assert clients.answers() == {"reset": QUEUED}


def test_what_the_tool_ends_itself_is_not_the_servers_doing(
    tool: Tool, server: Callable[..., Any], clients: Clients
) -> None:
    server("old", "--graceful")
    clients.connect(4)
    assert wait_until(lambda: queued(tool) == 0, DEADLINE_S)
    for client in clients.sockets:
        assert client.recv(100) == b"request"
    options = ("--drain-timeout", "500ms", "--kill-leftovers")
    report = tool.ok("reload", PORT, *options, "--", *server_command("new"))
    assert report["leftovers"]["ended"] == 4
    assert clients.answers() == {"reset": 4}
    assert report["resets"]["accepted"] == 0


# Resets one queued connection on another port of the namespace.
NOISE = f"""
import socket
listener = socket.create_server(("127.0.0.1", {PORT + 1}))
client = socket.create_connection(("127.0.0.1", {PORT + 1}))
listener.close()
try: client.recv(1)
except ConnectionResetError: pass
else: raise SystemExit("no reset")
"""


def test_resets_of_others_do_not_abort_a_reload(tool: Tool, server: Callable[..., Any], tmp_path: Path) -> None:
    server("old")
    noise = tmp_path / "noise.py"
    noise.write_text(NOISE)
    options = ("--abort-on", "resets=1", "--health-command", f"{sys.executable} {noise}")
    assert tool.ok("reload", PORT, *options, "--", *server_command("new"))["result"] == "reloaded"
