"""A cache that was filled with compiled programs."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class CompiledProgram:
    """One program."""

    name: str
    """What it is for, or the file of a policy of your own."""
    result: str
    """`compiled`, `unsupported` (the kernel lacks what it needs), or `not kept` (it must be compiled where it runs)."""
    detail: str | None
    """Why it is not there, or null."""


@record
class Filled:
    """What `compile` did."""

    folder: str
    """Where the programs are: the value for `REUSEPORT_TOOL_CACHE`."""
    kernel: str
    """The kernel's release. Only the very same build of it uses the programs."""
    programs: tuple[CompiledProgram, ...]
    """One entry for each program."""
