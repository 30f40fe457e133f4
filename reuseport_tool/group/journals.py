"""Which groups have the journal of a reload that runs, or was killed. What it says is the job `reload`'s."""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.group import state
from reuseport_tool.kernel.folders import Place, is_locked
from reuseport_tool.models import Endpoint


def folders(root: Path, endpoint: Endpoint) -> list[Place]:
    """The folders with a journal, of the groups of the calling thread's namespace that an endpoint covers."""
    return [folder for folder in state.folders(root, endpoint) if state.is_interrupted(folder)]


def groups(root: Path, endpoint: Endpoint) -> list[Endpoint]:
    """The groups of folders()."""
    names = (state.endpoint_of(folder.name) for folder in folders(root, endpoint))
    return [group for group in names if group is not None]


def forget(folder: Place) -> None:
    """Remove the journal of a group whose lock the caller holds."""
    (folder / state.JOURNAL).unlink()


def is_running(folder: Place) -> bool:
    """Whether some run holds the lock of a group's folder."""
    return is_locked(folder)
