"""Commands that the tool starts, and processes that it looks at: real ones, none of them privileged."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reuseport_tool.errors import NotFound, ToolError, UsageError
from reuseport_tool.kernel import commands, processes
from reuseport_tool.kernel.processes import Process, ProcessIdentity
from reuseport_tool.waiting import wait_until

ENDS_S = 60.0
Spawn = Callable[..., "subprocess.Popen[str]"]
SLEEP = (sys.executable, "-c", "import time; time.sleep(1000)")


def made() -> commands.Commands:
    return commands.Commands(wait_until, resource.getrlimit(resource.RLIMIT_NOFILE))


def until(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, ENDS_S)


def test_a_command_runs_only_when_it_is_released(tmp_path: Path) -> None:
    ran, output = tmp_path / "ran", tmp_path / "output"
    command = made()
    started = command.start(f"echo said; echo $$ >{ran}", output, 1)
    pid = started.identity.pid
    assert (command.exit_code(), ran.exists(), started.output) == (None, False, str(output))
    assert os.getsid(pid) == pid
    command.release()
    until(lambda: command.exit_code() is not None)
    assert (command.exit_code(), ran.read_text(), output.read_text()) == (0, f"{pid}\n", "said\n")


@pytest.mark.parametrize("has_mark", [False, True])
def test_the_mark_stays_in_all_that_descends_from_a_command(tmp_path: Path, has_mark: bool) -> None:
    """Also in another session, with another environment; and below a server that has an older mark itself."""
    command = made()
    mark = int.from_bytes(os.urandom(7), sys.byteorder)  # another run of this test at the same time has another one
    limits = resource.getrlimit(commands._RLIMIT_LOCKS)
    try:
        if has_mark:
            resource.setrlimit(commands._RLIMIT_LOCKS, (mark + 1, limits[1]))
        command.start("env -i setsid sleep 60 & exec sleep 60", tmp_path / "output", mark)
    finally:
        resource.setrlimit(commands._RLIMIT_LOCKS, limits)
    command.release()
    looker = commands.Processes(wait_until, (0, 0))
    try:
        until(lambda: len(looker.marked(mark)) == 2)
        until(lambda: {looker.command(pid) for pid in looker.marked(mark)} == {"sleep"})
        assert looker.marked(mark + 1) == set()
    finally:
        commands.end(list(looker.marked(mark)))
        until(lambda: command.exit_code() is not None)


def test_a_command_that_is_never_released_ends_with_the_tool(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    command = made()
    command.start(["/bin/sh", "-c", f"touch {ran}"], tmp_path / "output", 1)
    assert command._popen is not None
    assert command._popen.stdin is not None
    command._popen.stdin.close()  # as when the tool dies
    until(lambda: command.exit_code() is not None)
    assert command.exit_code() != 0
    assert not ran.exists()


@pytest.mark.parametrize(("argv", "output"), [(["/no/such/program"], "o"), (["/bin/true"], "no/folder/o")])
def test_what_cannot_be_started(tmp_path: Path, argv: list[str], output: str) -> None:
    with pytest.raises(UsageError, match="cannot start"):
        made().start(argv, tmp_path / output, 1)


def test_output_goes_to_the_journal_else_to_a_log_else_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_is_terminal", lambda: False)
    monkeypatch.setattr(commands, "_JOURNAL", str(tmp_path / "j"))
    with socket.socket(socket.AF_UNIX) as journal, contextlib.ExitStack() as files:
        journal.bind(str(tmp_path / "j"))
        journal.listen()
        fd, name = commands._output(None, "web", files)
        os.write(fd, b"a line\n")
        with journal.accept()[0] as stream:
            assert stream.recv(4096).decode().startswith("web\n\n6\n0\n0\n0\n0\n")
    assert name == "the journal (journalctl -t web)"
    (tmp_path / "j").unlink()
    monkeypatch.setattr(commands, "_LOGS", tmp_path / "logs")
    with contextlib.ExitStack() as files:
        assert str(commands._output(None, "web", files)[1]).startswith(str(tmp_path / "logs" / "web-"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(commands, "_LOGS", tmp_path / "file" / "logs")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with contextlib.ExitStack() as files:
        fd, name = commands._output(None, "web", files)
        os.write(fd, b"x")
        assert name is not None
        assert Path(name).read_bytes() == b"x"


def test_a_hook_is_run_and_what_it_says_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    made().run("echo said; echo wrong >&2", 30.0, "the hook")
    assert capfd.readouterr().err == "said\nwrong\n"
    with pytest.raises(ToolError, match="the hook exited with 3"):
        made().run("exit 3", 30.0, "the hook")


def test_a_hook_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    inner, deaf = tmp_path / "inner", tmp_path / "deaf"
    script = (
        f"setsid sh -c 'echo $$ >{inner}; exec sleep 1000' & trap '' TERM; echo $$ >{deaf}; while :; do sleep 1; done"
    )

    def both_there_then_never(condition: Callable[[], bool], _timeout_s: float) -> bool:
        until(lambda: all(path.exists() and path.read_text() for path in (inner, deaf)))
        return condition()

    command = commands.Commands(both_there_then_never, (1024, 1024))
    with pytest.raises(ToolError, match="took longer than"):
        command.run(script, 0.5, "the hook")
    pids = [int(path.read_text()) for path in (inner, deaf)]
    until(lambda: not any(identity is not None and identity.runs() for identity in map(processes.identity, pids)))


def test_a_hook_that_is_interrupted_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def interrupted(_condition: Callable[[], bool], _timeout_s: float) -> bool:
        until(lambda: pid.exists() and bool(pid.read_text()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commands.Commands(interrupted, (1024, 1024)).run(f"echo $$ >{pid}; exec sleep 1000", 5.0, "the hook")
    assert processes.identity(int(pid.read_text())) is None


def test_end_asks_first_and_kills_who_does_not_obey(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_KILL_AFTER_S", 0.2)
    deaf = spawn("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done", stdout=subprocess.PIPE)
    assert deaf.stdout is not None
    assert deaf.stdout.readline() == "ready\n"
    obeying = spawn(*SLEEP)
    commands.end([deaf.pid, obeying.pid, 2**22 - 1])
    assert (deaf.wait(ENDS_S), obeying.wait(ENDS_S)) == (-signal.SIGKILL, -signal.SIGTERM)


def test_terminate_sends_the_signal_it_is_told(spawn: Spawn) -> None:
    process = spawn(*SLEEP)
    commands.terminate([process.pid, 2**22 - 1], signal.SIGUSR1)
    assert process.wait(ENDS_S) == -signal.SIGUSR1


@pytest.fixture
def everybody(spawn: Spawn) -> tuple[commands.Processes, int]:
    """Processes, and the pid of a child from before."""
    bystander = spawn(*SLEEP)
    return commands.Processes(wait_until, (1024, 1024)), bystander.pid


def test_who_was_there_before_is_a_bystander(everybody: tuple[commands.Processes, int], spawn: Spawn) -> None:
    looker, bystander = everybody
    started = spawn(*SLEEP)
    tree = looker.tree()
    assert bystander in looker.bystanders(tree)
    assert started.pid not in looker.bystanders(tree)
    assert looker.own_pid() == os.getpid()


def test_a_signal_never_reaches_another_that_got_the_number(
    everybody: tuple[commands.Processes, int], spawn: Spawn
) -> None:
    looker, _ = everybody
    process = spawn(*SLEEP)
    right = processes.identity(process.pid)
    assert right is not None
    assert looker.runs(right)
    looker.signal(ProcessIdentity(process.pid, right.start_ticks + 1), signal.SIGKILL)
    looker.signal(ProcessIdentity(2**22 - 1, 5), signal.SIGKILL)
    assert process.poll() is None
    looker.signal(right, signal.SIGKILL)
    assert process.wait(ENDS_S) == -signal.SIGKILL
    assert not looker.runs(right)


def test_a_zombie_does_not_run(spawn: Spawn) -> None:
    process = spawn("true")
    identity = processes.identity(process.pid)
    assert identity is None or wait_until(lambda: not identity.runs(), ENDS_S)
    assert process.returncode is None


def test_what_is_known_of_a_process(everybody: tuple[commands.Processes, int], spawn: Spawn) -> None:
    looker, _ = everybody
    process = spawn(*SLEEP)
    kin = looker.kin(process.pid)
    assert (kin.executable, kin.parent) == (os.path.realpath(sys.executable), os.getpid())
    gone = looker.kin(2**22 - 1)
    assert (gone.unit, gone.executable, gone.parent) == (None, None, 0)
    assert looker.command(2**22 - 1) == "gone"


@pytest.mark.parametrize(
    ("places", "waits"),
    [
        (["ep_poll"], True),
        (["futex_wait", "inet_csk_accept"], True),
        (["futex_wait"], False),
        (["futex_wait", "0"], None),
        ([], False),
    ],
)
def test_who_sleeps_where_connections_come(
    places: list[str],
    waits: bool | None,
    everybody: tuple[commands.Processes, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that runs may be about to sleep there: nobody can tell."""
    for number, place in enumerate(places):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "wchan").write_text(place)
    monkeypatch.setattr(commands, "_listed", lambda _folder: [str(number) for number in range(len(places))])
    sleeps_in = commands._sleeps_in
    monkeypatch.setattr(commands, "_sleeps_in", lambda task: sleeps_in(str(tmp_path / Path(task).name)))
    assert everybody[0].waits(1) is waits


def test_orphans_of_a_daemon_become_ours(tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    with commands.adopting():
        subprocess.run(["sh", "-c", f"sh -c 'echo $$ >{grandchild}; exec sleep 1000' &"], check=True)
        until(lambda: grandchild.exists() and bool(grandchild.read_text()))
        pid = int(grandchild.read_text())
        until(lambda: processes.parent(pid) == os.getpid())
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid


HOLD = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print('ready', flush=True); sys.stdin.read()"
FORKS = "import os, sys; os.fork(); os.write(1, b'%d\\n' % os.getpid()); sys.stdin.read()"


def test_holders_by_proc(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no iterator is permitted."""
    monkeypatch.setattr(processes, "_iterator", lambda: None)
    holder = spawn(sys.executable, "-c", HOLD, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    sockets = dict(processes._socket_fds(holder.pid))
    (inode,) = sockets
    assert processes.holders([inode, 1]) == {inode: [processes.Holder(holder.pid, sockets[inode])], 1: []}
    assert processes.holders([inode], among=[os.getppid()]) == {inode: []}
    assert processes.holders([]) == {}
    assert processes.holders([inode], at_most=0) == {inode: []}
    with socket.socket() as own:
        ours = os.fstat(own.fileno()).st_ino
        assert processes.holders([ours]) == {ours: []}, "the tool itself holds nothing"


def test_the_master_is_the_one_that_forked_and_not_the_shell_that_executed(spawn: Spawn) -> None:
    master = spawn(sys.executable, "-c", FORKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert master.stdout is not None
    pids = {int(master.stdout.readline()) for _ in range(2)}
    (worker,) = pids - {master.pid}
    assert processes.topmost([worker]) == [master.pid]
    assert processes.topmost([worker, master.pid]) == [master.pid]
    assert processes.is_descendant(worker, master.pid)
    assert not processes.is_descendant(master.pid, worker)
    assert processes.is_descendant(1, 1), "in a container the server itself may be pid 1"
    assert not processes.is_descendant(worker, 1), "everybody is below it"
    assert set(processes.below([master.pid])) == pids
    assert processes.session(worker) == master.pid
    assert processes.topmost([os.getpid()]) == [os.getpid()]


def test_masters_ask_about_each_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have thousands of processes, each the parent of the next, that all hold thousands of listeners."""
    asked: list[int] = []
    first = 2**22

    def parent(pid: int) -> int:
        asked.append(pid)
        return pid - 1 if pid > first else 0

    monkeypatch.setattr(processes, "parent", parent)
    monkeypatch.setattr(processes, "_is_plain_fork", lambda _child, _above: False)
    masters = processes.Masters()
    for top in range(first, first + 100):
        assert masters.topmost(range(top, first + 3000)) == [top]
    assert masters.topmost([first + 500, first + 501, first + 2000]) == [first + 500, first + 2000]
    assert len(asked) <= 3001


def test_masters_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process ended, and its number came again below its child, between two looks at /proc."""
    monkeypatch.setattr(processes, "parent", lambda pid: {10: 11, 11: 10}.get(pid, 0))
    assert processes.Masters().topmost([10, 11]) in ([10], [11])


def test_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        Process(2**22 - 1)
    assert processes.command(2**22 - 1) is None
    assert (processes.parent(2**22 - 1), processes.started(2**22 - 1)) == (0, 0)
    assert not functools.reduce(lambda found, pid: found or pid == os.getpid(), processes.pids(), False)
