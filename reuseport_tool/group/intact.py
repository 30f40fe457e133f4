"""Whether the pins of a group are complete, and are those that the program works with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping

from reuseport_tool.errors import ToolError
from reuseport_tool.group import layout
from reuseport_tool.kernel import bpf


def is_whole(program: bpf.Program, maps: Mapping[str, bpf.Map]) -> bool:
    """Whether these maps are the program's, and none of ours that it uses is missing.

    An operator's policy may use maps of its own. The kernel tells the name of a map that is not pinned only with
    CAP_SYS_ADMIN; without it, lost maps of flows are not noticed.
    """
    used = set(program.map_ids())
    if not {maps[name].id for name in ("choice", "members", "generations")} <= used:
        return False
    unknown = used - {entry.id for entry in maps.values()}
    return not any(_name(map_id) in (*layout.SHAPES, *layout.ALL_FLOW_NAMES) for map_id in unknown)


def _name(map_id: int) -> str | None:
    with contextlib.suppress(OSError, ToolError), bpf.Map.by_id(map_id) as entry:
        return entry.name
    return None


def lost_generations(array: bpf.Map, pinned: Callable[[], Collection[int]]) -> set[int]:
    """The indices in the array of generations that have a sockarray and no pin.

    Without the lock the two are not of one moment. A generation is pinned before it is in the array, and out of the
    array before its pin goes: so what is in the array before and after a look at the pins, and is not in them, is lost.
    """
    before = _indices(array)
    lost = before - {number % array.max_entries for number in pinned()}
    return lost & _indices(array) if lost else lost


def _indices(array: bpf.Map) -> set[int]:
    found = set()
    for index in range(array.max_entries):
        with contextlib.suppress(FileNotFoundError):
            array.lookup(index)
            found.add(index)
    return found
