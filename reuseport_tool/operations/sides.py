"""The two sides of a reload: start the new one, stop the old one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reuseport_tool.errors import NotFound, ToolError, UsageError
from reuseport_tool.kernel import diag, processes
from reuseport_tool.kernel.processes import Process
from reuseport_tool.models import Protocol
from reuseport_tool.operations.waiting import wait_until

_KILL_AFTER_S = 10.0


class Started:
    """A command that was started in a session of its own, so that it outlives the tool.

    Its output goes to `output`, or to our stderr. Raises UsageError when it cannot be started.
    """

    def __init__(self, command: Sequence[str] | str, output: Path | None) -> None:
        with contextlib.ExitStack() as files:
            try:
                target = files.enter_context(output.open("ab")) if output else sys.stderr.fileno()
                self._popen = subprocess.Popen(
                    command,
                    shell=isinstance(command, str),
                    stdin=subprocess.DEVNULL,
                    stdout=target,
                    stderr=target,
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(f"cannot start {_shown(command)}: {error.strerror}") from error
        self.pid = self._popen.pid
        self._over_since: float | None = None
        self.shown = _shown(command)

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    def over_for_s(self) -> float | None:
        """For how long it has been over, None while it runs."""
        if self.exit_code() is None:
            return None
        self._over_since = self._over_since or time.monotonic()
        return time.monotonic() - self._over_since

    def failure(self) -> str | None:
        """How it ended, when it ended badly."""
        code = self.exit_code()
        if not code:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _shown(command: Sequence[str] | str) -> str:
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
