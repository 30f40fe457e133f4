"""BPF_MAP_TYPE_REUSEPORT_SOCKARRAY as a small collection: slot → socket cookie."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

from reuseport_tool.errors import Conflict, NotFound, ToolError, UsageError
from reuseport_tool.kernel import bpf

_NOEXIST = 1
_ENOTSUPP = 524  # the kernel's own; it has no name in Python


class SockArray:
    """The listeners of one generation. Does not own the map."""

    def __init__(self, array: bpf.Map) -> None:
        self.map = array

    @property
    def capacity(self) -> int:
        return int(self.map.max_entries)

    def get(self, slot: int) -> int | None:
        """The cookie in a slot, None when it is empty (the kernel empties it when the socket closes)."""
        try:
            return int.from_bytes(self.map.lookup(slot), sys.byteorder)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise bpf.translate(error, f"reading slot {slot}") from error

    def items(self, members: int) -> Iterator[tuple[int, int]]:
        """(slot, cookie) of the occupied ones of the first `members` slots."""
        for slot in range(members):
            cookie = self.get(slot)
            if cookie is not None:
                yield slot, cookie

    def put(self, slot: int, fd: int) -> None:
        """Put a listener into an empty slot (net/core/sock_reuseport.c, kernel/bpf/reuseport_array.c).

        Raises:
            UsageError: no such slot.
            Conflict: the slot is taken, or the socket is in a sockarray already.
            ToolError: the socket is not listening, not bound, or lacks SO_REUSEPORT.
        """
        try:
            self.map.update(slot, fd.to_bytes(8, sys.byteorder), _NOEXIST)
        except OSError as error:
            raise self._translate(error, slot) from error

    def remove(self, slot: int) -> None:
        try:
            self.map.delete(slot)
        except OSError as error:
            raise self._translate(error, slot) from error

    def _translate(self, error: OSError, slot: int) -> ToolError:
        if error.errno == errno.E2BIG or slot >= self.capacity:
            return UsageError(f"no slot {slot}", hint=f"slots are numbered from 0 to {self.capacity - 1}")
        if error.errno == errno.EEXIST:
            return Conflict(f"slot {slot} is taken", hint="first remove the listener in it, or name another slot")
        if error.errno == errno.EBUSY:
            return Conflict(
                "the socket is in a sockarray already", hint="a socket can be in one slot of one sockarray only"
            )
        if error.errno == errno.ENOENT:
            return NotFound(f"slot {slot} is empty", hint="'map show' lists the slots that are taken")
        if error.errno in (errno.EINVAL, _ENOTSUPP):
            return ToolError(
                "the kernel does not accept this socket", hint="it must be bound, listening, and have SO_REUSEPORT set"
            )
        return bpf.translate(error, f"updating slot {slot}")
