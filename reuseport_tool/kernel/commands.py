"""Commands that the tool runs: a server that outlives it, and hooks of the operator."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from reuseport_tool import names
from reuseport_tool.errors import MissingCapability, NotFound, ToolError, UsageError
from reuseport_tool.kernel import capabilities, cgroup, libc, named_files, processes
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.kernel.processes import Process, ProcessIdentity
from reuseport_tool.kernel.run_delay import RunDelay
from reuseport_tool.record import record

_RLIMIT_LOCKS = 10  # "Max file locks": the kernel has not looked at it since 2.4.25, and every child inherits it
_MARKED = re.compile(rb"^Max file locks +(\d+) ", re.MULTILINE)
# The command waits for a line from us, so that no server ever runs that nobody wrote down.
_GATE = 'read -r _ && exec "$@" </dev/null'
_JOURNAL = "/run/systemd/journal/stdout"
_JOURNAL_S = 2.0
_LOGS = Path("/var/log/reuseport-tool")
_GRACE_S = 1.0
_KILL_AFTER_S = 10.0
_ACCEPTS = {"accept", "inet_csk_accept", "ep_poll", "poll_schedule_timeout", "do_epoll_wait", "do_poll", "do_select"}


@record
class Started:
    """A command that was started, and the name of the file or journal that gets its output."""

    identity: ProcessIdentity
    output: str | None


@record
class Kin:
    """What tells the respawn of a server from another one: the systemd unit, the executable, the parent."""

    unit: str | None
    executable: str | None
    parent: int


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Inside, daemons that descend from this process become its children, however often they fork."""
    libc.set_child_subreaper(True)
    try:
        yield
    finally:
        libc.set_child_subreaper(False)


def no_such_program(command: str) -> UsageError:
    """The error for a command that cannot be found."""
    return UsageError(f"cannot start {command}: no such program", hint="give its path, or look at PATH")


class Commands:
    """The commands of one run.

    Args:
        wait: waits for a condition at most so many seconds; an interrupt may end it with an exception.
        limits: the soft and hard limit of open files that commands get.
    """

    def __init__(self, wait: Callable[[Callable[[], bool], float], bool], limits: tuple[int, int]) -> None:
        self._wait = wait
        self._limits = limits
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str] | str, output: Path | None, mark: int) -> Started:
        """The process of a command, which does nothing before release(), in a session of its own.

        Its output goes to `output`; without one to our stderr if that is a terminal, else to the journal or a file.

        Args:
            mark: by which marked() finds it and what descends from it.

        Raises UsageError when it cannot be started.
        """
        from shutil import which  # takes 10 ms to import, and not every reload starts a command

        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else " ".join(command)
        if which(argv[0]) is None:
            raise no_such_program(shown)
        with contextlib.ExitStack() as files:
            try:
                target, name = _output(output, Path(argv[0]).name, files)
                self._popen = subprocess.Popen(
                    ["/bin/sh", "-c", _GATE, "sh", *argv],
                    stdin=subprocess.PIPE,
                    stdout=target,
                    stderr=target,
                    start_new_session=True,
                    preexec_fn=lambda: self._restore(mark),
                )
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot start {shown}: {error}", hint="try the command by itself") from error
        found = processes.identity(self._popen.pid)
        assert found is not None, "a child is there until it is waited for"
        return Started(identity=found, output=name)

    def _restore(self, mark: int | None = None) -> None:
        """A command gets none of our capabilities, and the limit of open files that we were started with.

        The mark stays in all that descends from it: see Processes.marked().
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        if mark is not None:
            with contextlib.suppress(OSError, ValueError):  # the clock was set back, and we may not raise the limit
                resource.setrlimit(_RLIMIT_LOCKS, (mark, mark))
        capabilities.lower_ambient()

    def release(self) -> None:
        """Let the command run."""
        assert self._popen is not None
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as gate:
            gate.write(b"\n")

    def exit_code(self) -> int | None:
        """None while it runs, and where another run started it."""
        return self._popen.poll() if self._popen else None

    def run(self, command: str, timeout_s: float, doing: str) -> None:
        """Run a command by the shell; at the end of its time all that descends from it is ended.

        Raises ToolError when it fails or takes too long.
        """
        from tempfile import TemporaryFile

        with TemporaryFile() as output:
            target = sys.stderr.fileno() if _is_terminal() else output.fileno()
            popen = subprocess.Popen(
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                start_new_session=True,
                preexec_fn=self._restore,
            )
            try:
                in_time = self._wait(lambda: popen.poll() is not None, timeout_s)
            except BaseException:
                _end_group(popen)
                raise
            finally:
                _pass_on(output)
            if not in_time:
                _end_group(popen)
                raise ToolError(f"{doing} took longer than {timeout_s:g} s: {command}")
        if popen.returncode:
            raise ToolError(f"{doing} exited with {popen.returncode}: {command}")


class Processes(Commands):
    """The same, and all processes of this machine."""

    def __init__(self, wait: Callable[[Callable[[], bool], float], bool], limits: tuple[int, int]) -> None:
        super().__init__(wait, limits)
        tree = ProcessTree.read()
        self._bystanders = set(tree.identities(tree.below({os.getpid()}) - {os.getpid()}))
        self._run_delay = RunDelay()

    def tree(self) -> ProcessTree:
        """All of them, now."""
        return ProcessTree.read()

    def runs(self, process: ProcessIdentity) -> bool:
        """Whether it has not ended."""
        return process.runs()

    def own_pid(self) -> int:
        """Of the tool."""
        return os.getpid()

    def bystanders(self, tree: ProcessTree) -> set[int]:
        """Children of this process from before the run, and what descends from them.

        A wrapper may have started them and executed the tool. Orphans of theirs become our children, so whoever was
        once seen below them stays one.
        """
        known = {process.pid for process in tree.running(self._bystanders)}
        self._bystanders.update(tree.identities(tree.below(known)))
        return {process.pid for process in tree.running(self._bystanders)}

    def masters(self, pids: Collection[int]) -> list[int]:
        """The processes to stop so that these end."""
        return processes.topmost(pids)

    def command(self, pid: int) -> str:
        """Its name."""
        return processes.command(pid) or "gone"

    def kin(self, pid: int) -> Kin:
        """Of a process that is gone all is unknown."""
        executable = None
        with contextlib.suppress(OSError):
            executable = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        return Kin(unit=cgroup.service(pid), executable=executable, parent=processes.parent(pid))

    def waits(self, pid: int) -> bool | None:
        """Whether a thread sleeps in accept(2), or in a call that waits for several descriptors.

        None where one runs, or the kernel does not tell where it sleeps.
        """
        places = {_sleeps_in(f"/proc/{pid}/task/{task}") for task in _listed(f"/proc/{pid}/task")}
        if any(place in _ACCEPTS or "poll" in place or "accept" in place for place in places):
            return True
        return None if places & {"", "0"} else False

    def are_held_up(self, side: Collection[ProcessIdentity]) -> bool:
        """Whether one of these waits for a CPU or a disk or is stopped, as far as is known since the last call."""
        return self._run_delay.look(process.pid for process in side)

    def marked(self, mark: int) -> set[int]:
        """The processes that have the mark of a reload.

        It is a limit that they inherit. Their environment is memory that any user can make endless for its readers:
        prctl(PR_SET_MM_MAP) needs no right.
        """
        found = set()
        for pid in processes.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/limits", "rb") as file:
                limit = _MARKED.search(file.read())
                if limit and int(limit[1]) == mark:
                    found.add(pid)
        return found

    def signal(self, process: ProcessIdentity, number: int) -> None:
        """Send a signal, with 0 only try. One that is gone is no error. Raises MissingCapability."""
        with contextlib.suppress(NotFound):
            held = Process(process.pid)
            try:
                if processes.identity(process.pid) == process:
                    held.signal(number)
            finally:
                held.close()


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _sleeps_in(task: str) -> str:
    """The function of the kernel that a thread sleeps in; "" or "0" for one that runs."""
    with contextlib.suppress(OSError), open(f"{task}/wchan") as file:
        return file.read().strip()
    return "gone"


def _is_terminal() -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.isatty(sys.stderr.fileno())
    return False


def _output(output: Path | None, program: str, files: contextlib.ExitStack) -> tuple[int, str | None]:
    """A descriptor for a server's output, and its name. It never is a pipe that somebody waits for the end of."""
    if output is not None:
        fd = named_files.open_for_writing(output, os.O_APPEND)
        files.callback(os.close, fd)
        return fd, str(output)
    if _is_terminal():
        return sys.stderr.fileno(), None
    with contextlib.suppress(OSError):
        return files.enter_context(_journal(program)).fileno(), f"the journal (journalctl -t {program})"
    with contextlib.suppress(OSError, ToolError):
        fd, name = _log(f"{program}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log")
        files.callback(os.close, fd)
        return fd, name
    from tempfile import mkstemp

    fd, name = mkstemp(prefix=f"{program}-", suffix=".log")
    files.callback(os.close, fd)
    return fd, name


def _log(name: str) -> tuple[int, str]:
    """A new file in our folder of logs. Others may write to the one above: syslog's group, on some systems."""
    logs = Place(_LOGS.parent, (_LOGS.name,), forbidden=0o022)
    logs.make()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with logs.opened() as folder:
        return os.open(name, flags, 0o640, dir_fd=folder), str(logs / name)


def _journal(program: str) -> socket.socket:
    """A stream to systemd's journal: sd_journal_stream_fd(3). Raises OSError where there is none."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(_JOURNAL_S)  # a journald that is stopped accepts nobody
    try:
        stream.connect(_JOURNAL)
        # The identifier, the unit, the priority (6 is info), and four switches that are all off.
        stream.sendall(f"{names.shown(program)}\n\n6\n0\n0\n0\n0\n".encode(errors="replace"))
        stream.shutdown(socket.SHUT_RD)
        stream.setblocking(True)
    except OSError:
        stream.close()
        raise
    return stream


def _pass_on(output: object) -> None:
    """Show what a hook wrote. Nobody waits for it, and where it cannot be shown it is not."""
    if _is_terminal():
        return
    with contextlib.suppress(Exception):
        sys.stderr.flush()
        output.seek(0)  # type: ignore[attr-defined]
        while chunk := output.read(1 << 16):  # type: ignore[attr-defined]
            sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()


def _end_group(popen: subprocess.Popen[bytes]) -> None:
    """End a hook and all that descends from it, also in other sessions."""
    tree = ProcessTree.read()
    members = tree.identities({*tree.below({popen.pid}), *tree.in_session(popen.pid)})
    _signal_all(members, signal.SIGTERM)
    deadline_s = time.monotonic() + _GRACE_S
    while any(member.runs() for member in members) and time.monotonic() < deadline_s:
        popen.poll()
        time.sleep(0.01)
    _signal_all(members, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a disk or a tracer may keep it from ending
        popen.wait(_GRACE_S)


def _signal_all(members: Sequence[ProcessIdentity], number: int) -> None:
    for member in members:
        with contextlib.suppress(NotFound, MissingCapability):
            held = Process(member.pid)  # before the look at who it is: the number cannot pass to another any more
            try:
                if member.runs():
                    held.signal(number)
            finally:
                held.close()


def end(pids: Sequence[int]) -> None:
    """Terminate processes and wait for their end; kill those that do not obey."""
    held = []
    for pid in pids:
        with contextlib.suppress(NotFound):
            held.append(Process(pid))
    try:
        for process in held:
            process.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + _KILL_AFTER_S
        while not all(process.ended() for process in held):
            if time.monotonic() >= deadline_s:
                for process in held:
                    process.signal(signal.SIGKILL)
                return
            time.sleep(0.01)
    finally:
        for process in held:
            process.close()


def terminate(pids: Sequence[int], number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to each process; one that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(NotFound):
            process = Process(pid)
            try:
                process.signal(number)
            finally:
                process.close()
