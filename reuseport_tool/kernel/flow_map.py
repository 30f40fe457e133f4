"""The map of UDP flows that a program records: an LRU hash of 112 bytes of memory a flow, all of it from the start."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import time
from collections.abc import Iterator

from reuseport_tool.kernel import bpf
from reuseport_tool.kernel.abi import FLOW_KEY, FLOW_WORD
from reuseport_tool.record import record

ENTRIES = 65536
"""By default: 7 MB."""
UNIT_SHIFT = 26
"""`seen` counts in 2^26 ns (67 ms), so that its 32 bits last for nine years: a flow can stay in the map for as long."""
_BATCH = 8192
_SEEN_MASK = 0xFFFFFFFF
_GENERATION_MASK = 0xFFFF


@record
class RawFlow:
    """A flow: its key as the map has it, where it belongs, and the seconds since its last datagram, to a second."""

    key: bytes
    generation: int
    slot: int
    idle_s: float

    def is_of(self, generation: int | None) -> bool:
        """Whether it belongs to a generation, of whose number the map has 16 bits."""
        return generation is not None and self.generation == generation & _GENERATION_MASK

    def addresses(self, *, is_ipv6: bool) -> tuple[str, int, str]:
        """Source address, source port, destination address."""
        source, destination, port, _ = FLOW_KEY.unpack(self.key)
        family, size = (socket.AF_INET6, 16) if is_ipv6 else (socket.AF_INET, 4)
        return (
            socket.inet_ntop(family, source[:size]),
            int.from_bytes(port, "big"),
            socket.inet_ntop(family, destination[:size]),
        )


def create(entries: int) -> bpf.Map:
    """An empty map of flows."""
    return bpf.Map.create(
        bpf.MapType.LRU_HASH, "flows", key_size=FLOW_KEY.size, value_size=FLOW_WORD.size, max_entries=entries
    )


def flows(map_: bpf.Map) -> Iterator[RawFlow]:
    """Every flow that is recorded; those that come or go meanwhile may be missed."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> UNIT_SHIFT
    for key, word in _elements(map_):
        seen, slot, generation = FLOW_WORD.unpack(word)
        units = (now - seen) & _SEEN_MASK
        idle_s = 0.0 if units > _SEEN_MASK >> 1 else units * (1 << UNIT_SHIFT) / 1e9  # seen while we look
        yield RawFlow(key=key, generation=generation, slot=slot, idle_s=idle_s)


def count(map_: bpf.Map) -> int:
    """How many elements a hash has."""
    return sum(found for found, _ in _batches(map_))


def forget(map_: bpf.Map, index: int, generations: int) -> None:
    """Forget the flows, or the connections, of every generation with this place among so many: its number's remainder.

    Raises:
        ToolError: the map cannot be read or changed.
    """
    words = ((key, FLOW_WORD.unpack_from(value)) for key, value in _elements(map_))
    gone = [key for key, (_, _, generation) in words if generation % generations == index]
    with bpf.translated("forgetting flows"):
        for key in gone:
            with contextlib.suppress(FileNotFoundError):  # the kernel was quicker
                map_.delete(key)


def _elements(map_: bpf.Map) -> Iterator[tuple[bytes, bytes]]:
    for found, batch in _batches(map_):
        keys, values = batch.keys.raw, batch.values.raw
        for at in range(found):
            key = keys[at * map_.key_size : (at + 1) * map_.key_size]
            yield key, values[at * map_.value_size : (at + 1) * map_.value_size]


def _batches(map_: bpf.Map) -> Iterator[tuple[int, bpf.Batch]]:
    """A hash piece by piece: how many elements, and they."""
    batch = bpf.Batch(
        place=ctypes.create_string_buffer(8),
        keys=ctypes.create_string_buffer(_BATCH * map_.key_size),
        values=ctypes.create_string_buffer(_BATCH * map_.value_size),
        count=_BATCH,
    )
    begun = False
    while True:
        found, last = bpf.lookup_batch(map_, batch, begun=begun)
        yield found, batch
        if last:
            return
        begun = True
