"""The journal of a reload: what a run that was killed was about to do, so that another can finish or undo it.

It is a map of one element, pinned in the folder of every group of the reload: the kernel writes an element
by one system call, which a kill does not cut in two. An orderly end removes it, so whoever finds one and holds
the lock of the group knows that its run was killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool import records
from reuseport_tool.errors import Conflict, NotFound, ToolError
from reuseport_tool.group import journals, state
from reuseport_tool.kernel import bpf, bpffs
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.mib import TcpCounters
from reuseport_tool.kernel.processes import Identity
from reuseport_tool.models import CanaryStep, Counters, Endpoint, Queues, Step, Strategy
from reuseport_tool.reload.plan import Plan

_SIZE = 128 * 1024
_LENGTH = 4


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """One group of the reload. `attached_before` says that our program ran before the reload began."""

    endpoint: Endpoint
    old_cookies: tuple[int, ...]
    attached_before: bool
    old_generation: int | None
    new_generation: int | None
    counters_before: Counters | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything of a reload that cannot be found again by looking.

    Attributes:
        sequence: grows with each writing; the copies of several groups can differ by one.
        pid: of the tool.
        begun_at: seconds since 1970.
        step: the one that is being done.
        old: the processes to stop; `old_side` those and all that descend from them or hold what they hold.
        started: the process that we started.
        stop_asked: whether the old side has been told to stop.
    """

    sequence: int
    pid: int
    begun_at: float
    endpoint: Endpoint
    step: str
    plan: Plan
    strategy: Strategy
    old: tuple[Identity, ...]
    old_side: tuple[Identity, ...]
    started: Identity | None
    stop_asked: bool
    migrate_req_before: str | None
    mib_before: TcpCounters
    queued: Queues
    switch_us: float | None
    canary: tuple[CanaryStep, ...]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    groups: tuple[GroupRecord, ...]


class Journal:
    """The pinned copies of a running reload; closing it leaves the pins."""

    def __init__(self, folders: Iterable[Place]) -> None:
        self._pins = {folder / state.JOURNAL: self._open(folder / state.JOURNAL) for folder in folders}

    @staticmethod
    def _open(pin: Place) -> bpf.Map:
        with contextlib.suppress(FileNotFoundError):
            return bpffs.open_map(pin)
        return bpf.Map.create(bpf.MapType.ARRAY, "journal", value_size=_SIZE)

    def write(self, record: Record) -> None:
        """Raises ToolError for a record that is too large."""
        text = records.encode(record)
        if len(text) > _SIZE - _LENGTH:
            raise ToolError(
                f"too much to journal: {len(record.groups)} groups on {record.endpoint}",
                hint="reload them one by one: write the address, too",
            )
        value = (len(text).to_bytes(_LENGTH, "little") + text).ljust(_SIZE, b"\0")
        for pin, entry in self._pins.items():
            with bpf.translated("writing the journal"):
                entry.update(0, value)
            if not pin.exists():
                bpffs.pin(entry, pin)

    def remove(self) -> None:
        for pin in self._pins:
            pin.unlink()

    def close(self) -> None:
        for entry in self._pins.values():
            entry.close()


def read(folder: Place) -> Record | None:
    """The record in a group's folder, None where there is none. Raises Conflict for what is not ours."""
    pin = folder / state.JOURNAL
    try:
        with bpffs.open_map(pin) as entry:
            value = entry.lookup(0)
        length = int.from_bytes(value[:_LENGTH], "little")
        return records.decode(Record, value[_LENGTH : _LENGTH + length])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Conflict(f"{pin} is not this tool's", hint="look at it, then remove it") from error


def interrupted(root: Path, endpoint: Endpoint) -> Record:
    """The reload that covers a group that `endpoint` means, by its latest record.

    Raises:
        NotFound: there is none.
        Conflict: a journal that is not ours, or there are several reloads.
    """
    records = [record for folder in journals.folders(root, endpoint) if (record := read(folder)) is not None]
    if not records:
        raise NotFound(f"no reload of {endpoint} was interrupted", hint="'status' tells of one that was")
    if len({record.begun_at for record in records}) > 1:
        raise Conflict(f"several reloads on {endpoint} were interrupted", hint="write the address, too")
    return max(records, key=lambda record: record.sequence)
