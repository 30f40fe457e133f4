"""The map `choice` of a group: which generation its program gives the new connections to."""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator

from reuseport_tool.kernel import bpf

SHARES = 10_000
"""The unit of a canary's share: hundredths of a percent."""


class Element(enum.IntEnum):
    """The elements of the map: enum choice of bpf/reuseport.h."""

    WORKING = 0
    CANARY = 1
    SHARE = 2
    STEERED_PORT = 3
    STEERED_ADDRESS = 4


ELEMENTS = Element.STEERED_ADDRESS + 4


class Choice:
    """The open map."""

    def __init__(self, elements: bpf.Map) -> None:
        self._elements = elements

    @property
    def working(self) -> int:
        """Number of the working generation, 0 for none."""
        return self._elements.lookup_u32(Element.WORKING)

    @property
    def canary(self) -> tuple[int, int] | None:
        """Number of the canary generation and its share in SHARES, None when there is none."""
        generation, share = (self._elements.lookup_u32(index) for index in (Element.CANARY, Element.SHARE))
        return (generation, share) if generation else None

    def switch(self, generation: int) -> float:
        """Make a generation the working one, and end a canary. Returns the duration of the commit in microseconds.

        This update is the commit point: one element of an array, of which the program reads all or
        nothing. An update of the array of maps would be as atomic, but makes the caller wait for an
        RCU grace period (kernel/bpf/syscall.c, maybe_wait_bpf_programs()): milliseconds.
        """
        start = time.perf_counter()
        self._elements.update_u32(Element.WORKING, generation)
        duration_us = (time.perf_counter() - start) * 1e6
        self.end_canary()
        return duration_us

    def share(self, generation: int, share: int) -> None:
        """Give a generation beside the working one a share of the new connections, in SHARES; it may be 0.

        The order of the updates makes every state between them a legal one.
        """
        if self._elements.lookup_u32(Element.CANARY) != generation:
            self._elements.update_u32(Element.SHARE, 0)
            self._elements.update_u32(Element.CANARY, generation)
        self._elements.update_u32(Element.SHARE, share)

    def end_canary(self) -> None:
        """All new connections go to the working generation."""
        for index in (Element.SHARE, Element.STEERED_PORT, Element.CANARY):
            self._elements.update_u32(index, 0)

    @contextlib.contextmanager
    def steered(self, address: str, port: int) -> Iterator[None]:
        """Inside, a connection from this address and port goes to the canary generation, whatever its share."""
        packed = ipaddress.ip_address(address).packed.ljust(16, b"\0")
        for word in range(4):
            value = int.from_bytes(packed[4 * word : 4 * word + 4], sys.byteorder)
            self._elements.update_u32(Element.STEERED_ADDRESS + word, value)
        self._elements.update_u32(Element.STEERED_PORT, socket.htons(port))
        try:
            yield
        finally:
            self._elements.update_u32(Element.STEERED_PORT, 0)
