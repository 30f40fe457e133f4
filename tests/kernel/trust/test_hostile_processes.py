"""What processes of a user without rights can do to root's verbs by being there: many, odd, or in a silent place."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.waiting import wait_until
from tests.kernel.conftest import PORT, ask, server_command
from tests.kernel.trust.hostile import AS_USER, folder_of
from tests.tool import TIMEOUT_S, Tool

Start = Callable[..., subprocess.Popen[str]]
PYTHON = os.path.realpath(sys.executable)
SILENT_PORT = 9009


@pytest.fixture
def silent(in_netns: None) -> Iterator[int]:
    """A process of the user in a file system that does not answer any more; with an endless environment."""
    with folder_of(0o755) as folder:
        place = folder / "fuse"
        place.mkdir()
        script = f"from tests.kernel.trust import silent_fuse as s; s.serve('{place}', {SILENT_PORT}, {AS_USER})"
        server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            ready, pid = server.stdout.readline().split()
            assert ready == "ready"
            yield int(pid)
            os.kill(int(pid), signal.SIGKILL)
        finally:
            server.kill()  # the kernel answers for it, and whoever waits goes on
            server.communicate()
            subprocess.run(["umount", "--lazy", place], check=True)


def test_a_silent_file_system_and_an_endless_environment(
    tool: Tool, server: Start, end_owners: None, silent: int, tmp_path: Path
) -> None:
    """No verb looks at the folder, the files or the memory of a process."""
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["stat", "-L", f"/proc/{silent}/cwd"], timeout=0.5, capture_output=True, check=False)
    assert os.path.getsize("/proc/self/environ") == 0
    with open(f"/proc/{silent}/environ", "rb") as environment:
        assert len(environment.read(1 << 26)) == 1 << 26
    server("one")
    for verb in (("status",), ("sockets",), ("metrics",), ("attach", SILENT_PORT), ("detach", SILENT_PORT)):
        assert tool.run(*verb).code == 0, verb
    command = ("--output", "/dev/null", "--", *server_command("two"))
    for finish, name in (("--abort", "one"), ("--resume", "two")):
        once = f"[ -e {tmp_path}/{name} ] || {{ touch {tmp_path}/{name}; kill -KILL $PPID; }}"
        assert tool.run("reload", PORT, "--on-start", once, *command).code == -signal.SIGKILL
        limited = ["prlimit", f"--as={8 << 30}", *tool.command("reload", PORT, finish)]
        done = subprocess.run(limited, timeout=TIMEOUT_S, capture_output=True, text=True, check=False)
        assert (done.returncode, ask()) == (0, name), done.stderr
    tool.ok("reload", PORT, "--output", "/dev/null", "--", *server_command("three"))
    assert ask() == "three"


CHAIN = """
import os, socket, sys, time
depth, count = map(int, sys.argv[1:])
listeners = [socket.create_server(("127.0.0.1", 20000 + number), reuse_port=True) for number in range(count)]
reader, writer = os.pipe()
for level in range(depth):
    if os.fork():
        os.close(writer)
        if level == 0:
            os.read(reader, 1)
            print("ready", flush=True)
        time.sleep(600)
os.write(writer, b"x")
time.sleep(600)
"""


def cpu_s(tool: Tool, *verb: object) -> float:
    """Of a verb that succeeds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = tool.run(*verb)
    assert done.code == 0, done
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture
def chain(in_netns: None) -> Iterator[Callable[[int, int], None]]:
    """Processes of the user, each the parent of the next, that all hold the same listeners."""
    made: list[subprocess.Popen[str]] = []

    def start(depth: int, listeners: int) -> None:
        command = [*AS_USER, PYTHON, "-c", CHAIN, str(depth), str(listeners)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd="/")
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    yield start
    for process in made:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_chain_of_processes_that_all_hold_many_listeners(
    tool: Tool, server: Start, chain: Callable[[int, int], None]
) -> None:
    """The cost grows with the descriptors; it grew with processes x processes x listeners once, to minutes here."""
    pid = server("one").pid
    tool.ok("attach", PORT)
    verbs = (("status",), ("sockets",), ("metrics",))
    alone_s = [cpu_s(tool, *verb) for verb in verbs]
    chain(300, 40)
    for verb, baseline_s in zip(verbs, alone_s, strict=True):
        assert cpu_s(tool, *verb) < 10 * baseline_s, verb
    groups = tool.ok("status")["groups"]
    assert len(groups) == 41
    (ours,) = [group for group in groups if group["endpoint"].endswith(f":{PORT}")]
    assert [(entry["pid"], entry["flag"]) for entry in ours["listeners"]] == [(pid, "working")]
    theirs = {entry["pid"] for group in groups if group is not ours for entry in group["listeners"]}
    assert len(theirs) == 1, "the topmost of the chain"


HOLDER = """
import ctypes, socket, time
s = socket.create_server(("127.0.0.1", 9001), reuse_port=True)
ctypes.CDLL(None).prctl(15, b"\\x1b[2Jx\\ny\\x9b31m", 0, 0, 0)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_name_with_escape_sequences_in_the_live_view(
    tool: Tool, server: Start, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """On a terminal, where the view draws with escape sequences of its own."""
    server("one")
    process = spawn(*AS_USER, PYTHON, "-c", HOLDER, stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    shown = on_terminal(tool.command("status", "--watch", "--interval", "0.1", as_json=False), rb"9001", 2)
    assert b"\x1b[2J" not in shown
    assert b"x\ny" not in shown
    assert b"\x9b" not in shown.decode().encode("latin-1", errors="ignore")
    assert rb"\x1b[2J" in shown


def on_terminal(command: list[str], wanted: bytes, times: int) -> bytes:
    """What a command writes to a terminal until it has written something so many times, ended as by Ctrl-C."""
    terminal, slave = pty.openpty()
    shown = b""

    def read() -> None:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            shown += os.read(terminal, 1 << 16)

    def enough() -> bool:
        read()
        return len(re.findall(wanted, shown)) >= times

    def ended() -> bool:
        read()  # it cannot write its last lines to a terminal that is full
        return process.poll() is not None

    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        try:
            assert wait_until(enough, TIMEOUT_S), shown
            process.send_signal(signal.SIGINT)
            assert wait_until(ended, TIMEOUT_S), shown
        finally:
            process.kill()
            os.close(terminal)
            os.close(slave)
    assert process.returncode == 0
    return shown


HEADLESS = """
import ctypes, socket, sys, threading
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
def serve():
    while True:
        client, _ = listener.accept()
        client.recv(100)
        client.sendall(b"headless")
        client.close()
threading.Thread(target=serve).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def has_pidfds_of_threads() -> bool:
    """Linux 6.9."""
    try:
        os.close(os.pidfd_open(os.getpid(), os.O_EXCL))
    except OSError:
        return False
    return True


def test_a_server_whose_first_thread_has_ended(
    tool: Tool, spawn: Start, in_netns: None, end_owners: None, tmp_path: Path
) -> None:
    """The kernel shows a zombie without descriptors, and it serves. It is replaced and stopped as any other."""
    old = spawn(sys.executable, "-c", HEADLESS, str(PORT), stdout=subprocess.PIPE)
    assert old.stdout is not None
    assert old.stdout.readline() == "ready\n"
    status = Path(f"/proc/{old.pid}/status")
    assert wait_until(lambda: "State:\tZ" in status.read_text(), TIMEOUT_S)
    if not has_pidfds_of_threads():
        assert tool.fails(4, "attach", PORT)["message"].startswith("the first thread")
        assert ask() == "headless"
        return
    assert len(tool.ok("attach", PORT)["attached"][0]["registered"]) == 1
    assert ask() == "headless"
    tool.ok("reload", PORT, "--output", tmp_path / "log", "--", *server_command("two"))
    assert ask() == "two"
    assert old.wait(TIMEOUT_S) == -signal.SIGTERM
