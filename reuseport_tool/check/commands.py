"""Commands of checks and benches, with an end."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from reuseport_tool.errors import ToolError

LONGEST_S = 300.0


def run(
    command: Sequence[str], *, is_shown: bool = True, longest_s: float = LONGEST_S
) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with what it wrote; its stdout goes nowhere unless it `is_shown`.

    Raises ToolError when it takes longer than `longest_s`, and it is killed then.
    """
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE if is_shown else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=longest_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            f"{' '.join(command[-4:])} takes longer than {longest_s:g} s", hint="try again on an idle machine"
        ) from error
