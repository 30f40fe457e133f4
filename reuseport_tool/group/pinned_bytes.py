"""Bytes in a pinned map, which outlive their process.

Each writing makes a new map, pins it aside and renames it into place, so what is pinned is never half there and has
room for any length.
"""

from __future__ import annotations

from collections.abc import Iterable

from reuseport_tool.kernel import bpf, bpffs
from reuseport_tool.kernel.folders import Place

_CHUNK = 16 * 1024


def write(folders: Iterable[Place], name: str, value: bytes) -> None:
    """Replace what has this name in several folders, whose locks the caller holds. Raises as bpf(2) does."""
    chunks = [value[at : at + _CHUNK].ljust(_CHUNK, b"\0") for at in range(0, len(value), _CHUNK)]
    with bpf.Map.create(bpf.MapType.ARRAY, name, value_size=_CHUNK, max_entries=len(chunks)) as entry:
        with bpf.translated(f"writing the {name.replace('_', ' ')}"):
            for index, chunk in enumerate(chunks):
                entry.update(index, chunk)
        for folder in folders:
            aside = folder / _aside(name)
            aside.unlink()
            bpffs.pin(entry, aside)
            aside.rename(folder / name)


def read(pin: Place) -> bytes:
    """What was written, with zeros behind it. Raises FileNotFoundError, and OSError or ValueError for anything else."""
    with bpffs.open_map(pin) as entry:
        if (entry.type, entry.value_size) != (bpf.MapType.ARRAY, _CHUNK):
            raise ValueError(f"{pin} is no map of this kind")
        return b"".join(entry.lookup(index) for index in range(entry.max_entries))


def remove(folder: Place, name: str) -> None:
    """Remove what has this name, and what a killed run left aside."""
    for entry in (name, _aside(name)):
        (folder / entry).unlink()


def _aside(name: str) -> str:
    return f"{name}_next"
