"""Where a reload writes down what it is about to do: pins in the folder of every group that it changes.

The text is that of the reload, and only the reload can read it. The header is for everybody. An orderly end removes
the journal: whoever finds one and holds the lock of the group knows that its run was killed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reuseport_tool.errors import Conflict
from reuseport_tool.group import pinned_bytes, places
from reuseport_tool.kernel.folders import Place, is_locked
from reuseport_tool.models import Endpoint
from reuseport_tool.record import record

_LENGTHS = 8  # two little-endian numbers of four bytes: of the header, of the text


@record
class Header:
    """What everybody may know of a reload.

    Attributes:
        sequence: grows with each writing; the journals of several groups can differ by one.
        pid: of the tool.
        begun_at: seconds since 1970.
        step: the one that is being done.
        share_until: when the present share of a canary will have lasted long enough, in seconds since 1970.
    """

    sequence: int
    pid: int
    begun_at: float
    step: str
    share_until: float | None = None


@record
class Entry:
    """What is in a journal."""

    header: Header
    text: bytes


def write(folders: Iterable[Place], header: Header, text: bytes) -> None:
    """Replace the journals of several groups, whose locks the caller holds. Raises as bpf(2) does."""
    from reuseport_tool import record_json

    head = record_json.encode(header)
    value = len(head).to_bytes(4, "little") + len(text).to_bytes(4, "little") + head + text
    pinned_bytes.write(folders, places.JOURNAL, value)


def read(folder: Place) -> Entry | None:
    """The journal in a group's folder, None where there is none. Raises Conflict for what is not ours."""
    pin = folder / places.JOURNAL
    try:
        head, text = _cut(pinned_bytes.read(pin))
        from reuseport_tool import record_json  # which not every status needs

        return Entry(header=record_json.decode(Header, head), text=text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Conflict(f"{pin} is not this tool's", hint="look at it, then remove it") from error


def _cut(value: bytes) -> tuple[bytes, bytes]:
    head, text = (int.from_bytes(value[at : at + 4], "little") for at in (0, 4))
    if _LENGTHS + head + text > len(value):
        raise ValueError("longer than its map")
    return value[_LENGTHS : _LENGTHS + head], value[_LENGTHS + head : _LENGTHS + head + text]


def forget(folder: Place) -> None:
    """Remove the journal of a group whose lock the caller holds."""
    pinned_bytes.remove(folder, places.JOURNAL)


def entries(root: Path, endpoint: Endpoint) -> list[Entry]:
    """The journals of the groups that an endpoint covers, in the calling thread's namespace."""
    return [entry for folder in folders(root, endpoint) if (entry := read(folder)) is not None]


def folders(root: Path, endpoint: Endpoint) -> list[Place]:
    """The folders with a journal, of the groups of the calling thread's namespace that an endpoint covers."""
    return [folder for folder in places.group_folders(root, endpoint) if places.is_interrupted(folder)]


def groups(root: Path, endpoint: Endpoint) -> list[Endpoint]:
    """The groups of folders()."""
    names = (places.endpoint_of(folder.name) for folder in folders(root, endpoint))
    return [group for group in names if group is not None]


def is_running(folder: Place) -> bool:
    """Whether some run holds the lock of a group's folder."""
    return is_locked(folder)
