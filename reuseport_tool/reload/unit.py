"""`reload --unit web@`: the two instances of a template unit take turns, and systemd knows of all that happens."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

from reuseport_tool.errors import Conflict, NotFound, ToolError, UsageError
from reuseport_tool.kernel import interrupts, systemd
from reuseport_tool.kernel.interrupts import Clock
from reuseport_tool.models import Reload
from reuseport_tool.record import record

_INSTANCES = ("a", "b")


@record
class Twin:
    """The instance that serves, and the one that takes over; `pid` is the new one's main process."""

    old: str
    new: str
    pid: int

    @property
    def stop_command(self) -> str:
        """systemd stops the old instance, so it is not restarted."""
        return f"systemctl stop {shlex.quote(self.old)}"


@contextlib.contextmanager
def started(template: str, start_timeout_s: float, stop_timeout_s: float) -> Iterator[Twin]:
    """The new instance, started and ready where its type tells. It is stopped when the reload does not go through.

    For the main thread: an interrupt while systemd starts it is one of the reload.

    Raises:
        UsageError: not the name of a template.
        NotFound: no instance runs, or there is no systemd.
        Conflict: both run.
        ToolError: the new instance does not start.
    """
    old, new = turn(template)
    was_enabled = systemd.is_enabled(old)
    with interrupts.raising():
        try:
            systemd.start(new, start_timeout_s)
            yield Twin(old=old, new=new, pid=systemd.main_pid(new))
        except BaseException as error:
            if not serves_anew(error):
                with Clock():  # a further interrupt does not leave it running
                    systemd.stop(new, stop_timeout_s)
            raise
        if was_enabled:
            with Clock():
                systemd.enable_instead(new, old)


def turn(template: str) -> tuple[str, str]:
    """Which instance serves, and which one takes over."""
    name = template.removesuffix(".service")
    if not name.endswith("@") or name == "@" or "/" in name:
        raise UsageError(f"not a template unit: {template!r}", hint="for example --unit web@, for web@a and web@b")
    active = systemd.active_instances(name)
    names = [f"{name}{instance}" for instance in _INSTANCES]
    if not active:
        raise NotFound(f"no instance of {name} runs", hint=f"start one: systemctl start {names[0]}")
    if len(active) > 1:
        raise Conflict(f"several instances of {name} run: {', '.join(active)}", hint="stop all but the one that serves")
    return active[0], next(other for other in names if other != active[0])


def serves_anew(error: BaseException) -> bool:
    """Whether a reload failed only after the old side had been stopped."""
    return isinstance(error, ToolError) and isinstance(error.report, Reload) and error.report.result == "reloaded"
