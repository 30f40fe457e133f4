"""Commands of checks and benches, with an end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from reuseport_tool.errors import ToolError

_LONGEST_S = 300.0


def run(command: Sequence[str], *, is_shown: bool = True) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with what it wrote; its stdout goes nowhere unless it `is_shown`.

    Raises ToolError when it takes longer than five minutes, and it is killed then.
    """
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE if is_shown else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            f"{' '.join(command[-4:])} takes longer than {_LONGEST_S:g} s", hint="try again on an idle machine"
        ) from error
