"""The processes of a world in memory, and the commands that the tool runs."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from pathlib import Path

from reuseport_tool.errors import ToolError, UsageError
from reuseport_tool.kernel.commands import Kin, Started
from reuseport_tool.kernel.process_tree import ProcessTree, Row
from reuseport_tool.kernel.processes import ProcessIdentity
from tests.unit.reload.fake.part import Part


class FakeProcesses(Part):
    def tree(self) -> ProcessTree:
        rows = (Row(pid=proc.pid, parent=proc.parent, start_ticks=proc.start) for proc in self._world.procs.values())
        return ProcessTree(rows)

    def runs(self, process: ProcessIdentity) -> bool:
        proc = self._world.procs.get(process.pid)
        return proc is not None and proc.start == process.start_ticks

    def own_pid(self) -> int:
        return self._world.tool

    def bystanders(self, tree: ProcessTree) -> set[int]:
        return {pid for pid, proc in self._world.procs.items() if proc.name == "bystander"}

    def masters(self, pids: Collection[int]) -> list[int]:
        return sorted(self.tree().tops(set(pids)))

    def command(self, pid: int) -> str:
        return self._world.procs[pid].name if pid in self._world.procs else "gone"

    def kin(self, pid: int) -> Kin:
        proc = self._world.procs.get(pid)
        return (
            Kin(unit=proc.unit, executable=proc.executable, parent=proc.parent)
            if proc
            else Kin(unit=None, executable=None, parent=0)
        )

    def waits(self, pid: int) -> bool | None:
        self._world.tap("waits")
        return pid in self._world.procs and self._world.procs[pid].name == "waiter"

    def are_held_up(self, side: Collection[ProcessIdentity]) -> bool:
        return False

    def marked(self, mark: int) -> set[int]:
        return {pid for pid, proc in self._world.procs.items() if proc.mark == mark}

    def start(self, command: Sequence[str] | str, output: Path | None, mark: int) -> Started:
        if command == ("missing",):
            raise UsageError("no such program")
        pid = self._world.process(parent=self._world.tool, executable="/new", mark=mark)
        self._world.started = pid
        return Started(identity=ProcessIdentity(pid, self._world.procs[pid].start), output="/log")

    def release(self) -> None:
        assert self._world.started is not None
        self._world.released = True
        self._world.behaviour(self._world, self._world.started)

    def exit_code(self) -> int | None:
        return self._world.exit_codes.get(self._world.started or 0)

    def signal(self, process: ProcessIdentity, number: int) -> None:
        if not self.runs(process) or not number:
            return
        self._world.signals.append((process.pid, number))
        on_term = self._world.procs[process.pid].on_term
        if number == signal.SIGKILL or on_term == "end":
            self._world.end(process.pid, -number)
        elif callable(on_term):
            on_term()

    def run(self, command: str, timeout_s: float, doing: str) -> None:
        self._world.hooks.append(command)
        self._world.on_hook(command)
        if command in self._world.failing_hooks:
            raise ToolError(f"{doing} exited with 1: {command}")
