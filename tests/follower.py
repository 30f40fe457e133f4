"""`attach --follow` as a process of a test: its events, its end, what it costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from reuseport_tool.waiting import wait_until
from tests.tool import TIMEOUT_S, Tool

PRIORITY = -15  # Nice= of the unit file


def prefer(leader: int) -> None:
    """Give a new session the unit file's priority: with autogroups (sched(7)) a nice value counts inside only."""
    os.setpriority(os.PRIO_PROCESS, leader, PRIORITY)
    group = Path(f"/proc/{leader}/autogroup")
    if group.exists():
        group.write_text(str(PRIORITY))


class Follower:
    """A context manager; the process is ended with it. It has the priority of the unit that is shipped."""

    def __init__(self, tool: Tool, folder: Path, *arguments: object, **environment: str) -> None:
        number = len(list(folder.glob("follower-*.out")))
        self._out, self._err = folder / f"follower-{number}.out", folder / f"follower-{number}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                tool.command("attach", *arguments, "--follow"),
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, **environment},
            )
        prefer(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Follower:
        self.await_event("following")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert "Traceback" not in self._err.read_text(), self._err.read_text()

    def events(self, name: str | None = None) -> list[Any]:
        """One object for each line that is complete, all of them or those of one kind."""
        lines = [json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in lines if name in (None, event["event"])]

    def await_event(self, name: str, count: int = 1) -> list[Any]:
        """Wait for so many events of a kind."""

        def arrived() -> bool:
            return self._process.poll() is not None or len(self.events(name)) >= count

        assert wait_until(arrived, TIMEOUT_S), f"no {count} {name}: {self.events()}"
        assert len(self.events(name)) >= count, f"ended: {self.events()} {self._err.read_text()}"
        return self.events(name)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code."""
        self.send(number)
        return self._process.wait(timeout=TIMEOUT_S)

    def cost(self) -> tuple[float, int]:
        """CPU seconds (user and system) and context switches so far, of all its threads."""
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        switches = sum(
            int(line.split()[1])
            for task in Path(f"/proc/{self.pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if "ctxt_switches" in line
        )
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), switches
