"""What became of the last reload of a group, where `status` finds it: a pin in the group's folder.

`detach` removes it with everything else, and the next reload replaces it.
"""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.errors import Conflict
from reuseport_tool.group import pinned_bytes, places
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Endpoint, LastReload


def write(folder: Place, last: LastReload) -> None:
    """Replace the record of a group whose lock the caller holds. Raises as bpf(2) does."""
    from reuseport_tool import record_json

    pinned_bytes.write([folder], places.LAST_RELOAD, record_json.encode(last))


def read(folder: Place) -> LastReload | None:
    """None where there is none, or only one of another version of this tool. Raises Conflict for what is no record."""
    pin = folder / places.LAST_RELOAD
    try:
        text = pinned_bytes.read(pin)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Conflict(f"{pin} is not this tool's", hint="look at it, then remove it") from error
    from reuseport_tool import record_json  # which not every status needs

    try:
        return record_json.decode(LastReload, text.rstrip(b"\0"))
    except ValueError:
        return None


def forget_damaged(folder: Place) -> bool:
    """Remove what is in the place of the record and is none. Returns whether something was."""
    try:
        read(folder)
    except Conflict:
        (folder / places.LAST_RELOAD).remove()
        return True
    return False


def groups(root: Path, endpoint: Endpoint) -> list[Endpoint]:
    """The groups with a record, of the calling thread's namespace, that an endpoint covers."""
    there = [folder for folder in places.group_folders(root, endpoint) if (folder / places.LAST_RELOAD).exists()]
    return [group for folder in there if (group := places.endpoint_of(folder.name)) is not None]
