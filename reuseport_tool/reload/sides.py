"""The two sides of a reload: start the new one, stop the old one."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reuseport_tool.errors import NotFound, ToolError, UsageError
from reuseport_tool.kernel import capabilities, diag, processes
from reuseport_tool.kernel.processes import Identity, Process
from reuseport_tool.models import Protocol
from reuseport_tool.waiting import wait_until

_KILL_AFTER_S = 10.0


# The command waits for a line from us, so that no server ever runs that the journal does not know.
_GATE = 'read -r _ && exec "$@" </dev/null'


class Started:
    """The process of a command, in a session of its own, so that it outlives the tool.

    `_popen` is None for one that another run of the tool started.
    """

    def __init__(self, identity: Identity, shown: str, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.identity = identity
        self.shown = shown
        self._popen = popen
        self._over_since: float | None = None

    @classmethod
    def prepare(cls, command: Sequence[str] | str, output: Path | None) -> Started:
        """The process, which does nothing before release(). Its output goes to `output`, or to our stderr.

        Raises UsageError when it cannot be started.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if shutil.which(argv[0]) is None:
            raise UsageError(f"cannot start {shown(command)}: no such program")
        with contextlib.ExitStack() as files:
            try:
                target = files.enter_context(output.open("ab")) if output else sys.stderr.fileno()
                popen = subprocess.Popen(
                    ["/bin/sh", "-c", _GATE, "sh", *argv],
                    stdin=subprocess.PIPE,
                    stdout=target,
                    stderr=target,
                    start_new_session=True,
                    preexec_fn=capabilities.lower_ambient,
                )
            except (OSError, ValueError) as error:
                raise UsageError(f"cannot start {shown(command)}: {error}") from error
        found = processes.identity(popen.pid)
        assert found is not None, "a child is there until it is waited for"
        return cls(found, shown(command), popen)

    def release(self) -> None:
        """Let the command run."""
        assert self._popen is not None
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as gate:
            gate.write(b"\n")

    @property
    def pid(self) -> int:
        return self.identity.pid

    def is_over(self) -> bool:
        return self._popen.poll() is not None if self._popen else not self.identity.runs()

    def over_for_s(self) -> float | None:
        """For how long it has been over, None while it runs."""
        if not self.is_over():
            return None
        self._over_since = self._over_since or time.monotonic()
        return time.monotonic() - self._over_since

    def failure(self) -> str | None:
        """How it ended, when it ended badly; unknown for the child of another run."""
        code = self._popen.poll() if self._popen else None
        if not code:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def shown(command: Sequence[str] | str) -> str:
    return command if isinstance(command, str) else " ".join(command)


def listening_elsewhere(pid: int) -> list[str]:
    """The TCP endpoints on which a process or one below it listens."""
    sockets = diag.bound_sockets(Protocol.TCP)
    held = processes.holders([entry.inode for entry in sockets])
    return sorted(
        {
            str(entry.endpoint)
            for entry in sockets
            if any(processes.is_descendant(holder.pid, pid) for holder in held[entry.inode])
        }
    )


def terminate(pids: Sequence[int], number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to each process; one that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(NotFound):
            process = Process(pid)
            try:
                process.signal(number)
            finally:
                process.close()


def check_signals(pids: Sequence[int]) -> None:
    """Raises MissingCapability where terminate() or end() would not be permitted to signal a process."""
    for pid in pids:
        with contextlib.suppress(NotFound):
            process = Process(pid)
            try:
                process.signal(0)
            finally:
                process.close()


def end(pids: Sequence[int]) -> None:
    """Terminate processes and wait for their end; kill those that do not obey."""
    held = []
    for pid in pids:
        with contextlib.suppress(NotFound):
            held.append(Process(pid))
    try:
        for process in held:
            process.signal(signal.SIGTERM)
        if not wait_until(lambda: all(process.ended() for process in held), _KILL_AFTER_S):
            for process in held:
                process.signal(signal.SIGKILL)
    finally:
        for process in held:
            process.close()


def run(command: str, timeout_s: float, doing: str) -> None:
    """Run a shell command, its output to our stderr. Raises ToolError when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{doing} took longer than {timeout_s:g} s: {command}") from error
    if done.returncode:
        raise ToolError(f"{doing} exited with {done.returncode}: {command}")
