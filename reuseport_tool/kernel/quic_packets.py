"""Datagrams that look like QUIC's as far as a program can see (RFC 8999, RFC 9000, RFC 9369). What follows is noise."""

from __future__ import annotations

VERSION_1, VERSION_2 = 0x00000001, 0x6B3343CF
INITIAL, ZERO_RTT, HANDSHAKE, RETRY = range(4)
LEAST = 1200
_FIXED = 0xC0


def long(
    kind: int, destination: bytes, source: bytes = b"client", *, version: int = VERSION_1, size: int = 100
) -> bytes:
    """A long header. `kind` as version 1 numbers them."""
    number = (kind + 1) % 4 if version == VERSION_2 else kind
    head = bytes([_FIXED | number << 4]) + version.to_bytes(4, "big")
    ids = bytes([len(destination)]) + destination + bytes([len(source)]) + source
    return (head + ids).ljust(size, b"\x5a")


def initial(destination: bytes, source: bytes = b"client", *, version: int = VERSION_1, size: int = LEAST) -> bytes:
    """The first packet of a connection, in a datagram of this size."""
    return long(INITIAL, destination, source, version=version, size=size)


def answer(destination: bytes, source: bytes, *, version: int = VERSION_1, size: int = 100) -> bytes:
    """A server's first datagram: an Initial packet of this size, and a Handshake packet behind it."""
    head = long(INITIAL, destination, source, version=version, size=0)
    length = (size - len(head) - 3) | 0x4000  # RFC 9000, section 16: an integer of two bytes
    first = (head + b"\0" + length.to_bytes(2, "big")).ljust(size, b"\x5a")
    return first + long(HANDSHAKE, destination, source, version=version)


def short(destination: bytes, size: int = 50) -> bytes:
    """A packet of an established connection."""
    return (b"\x40" + destination).ljust(size, b"\x5a")


def destination(packet: bytes) -> bytes:
    """The destination ID of a long header."""
    return packet[6 : 6 + packet[5]]


def source(packet: bytes) -> bytes:
    """The source ID of a long header."""
    at = 6 + packet[5]
    return packet[at + 1 : at + 1 + packet[at]]


def is_long(packet: bytes) -> bool:
    """Whether it has a long header."""
    return bool(packet) and bool(packet[0] & 0x80)


def renewed(first: bytes, number: int) -> bytes:
    """The ID that takes the place of another one, as the servers of `check udp-reload` make them."""
    return first[:-1] + bytes([first[-1] + number])
