"""How fast this machine is at what `check udp-reload` does: an emulated or busy one takes many times as long."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from reuseport_tool.errors import ToolError
from reuseport_tool.record import record

_USUAL_S = 1.0  # for a call of this tool on a machine of 2026, also one with some other work
_CALL_S = 600.0


@record
class Pace:
    """Times and loads that fit any machine.

    Attributes:
        slowness: how many times as long as usual things take here, at least 1.
    """

    slowness: float = 1.0

    def seconds(self, usual_s: float) -> float:
        """What is enough here, where `usual_s` is enough on a machine of today."""
        return usual_s * self.slowness

    def option(self, word: str | float) -> str:
        """A word of a command line; a number is a time that is usually enough."""
        return word if isinstance(word, str) else f"{self.seconds(word):g}s"


USUAL = Pace()


def measure(command: Sequence[str], at_a_time: int) -> Pace:
    """Run a command of the tool so many times at once. Raises ToolError when it fails or does not end."""
    begun = time.monotonic()
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(at_a_time)
    ]
    try:
        codes = {process.wait(_CALL_S) for process in running}
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"a call of this tool takes longer than {_CALL_S:g} s here") from error
    finally:
        for process in running:
            process.kill()
            process.wait()
    if codes != {0}:
        raise ToolError(f"{' '.join(command)} exits with {max(codes)}")
    return Pace(slowness=max(1.0, (time.monotonic() - begun) / _USUAL_S))
