"""Sockarrays, and arrays of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import bpf, loopback, netns, sockets
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is


@contextmanager
def _listener_in(capacity: int) -> Iterator[tuple[bpf.Map, int]]:
    """A sockarray with a listener in its last slot, in a namespace of its own, and the listener's fd."""
    with netns.throw_away(), _sockarray(capacity) as array, loopback.listener(_PORT) as sock:
        SockArray(array).put(capacity - 1, sock.fileno())
        yield array, sock.fileno()


def _sockarray(capacity: int) -> bpf.Map:
    return bpf.Map.create(bpf.MapType.REUSEPORT_SOCKARRAY, "probe", value_size=8, max_entries=capacity)


def _sockarray_cookies() -> str:
    with _listener_in(2) as (array, fd):
        if SockArray(array).get(1) != sockets.cookie(fd):
            raise Unsupported("the look-up does not give the socket's cookie")
    return "put a listener in, read its cookie back"


def _array_of_sockarrays() -> str:
    with _listener_in(2) as (array, _), _sockarray(2) as empty, _outer(empty) as outer:
        outer.update_u32(0, array.fd)
        if outer.lookup_u32(0) != array.id:
            raise Unsupported("the array does not hold what was put into it")
    return "put one in"


def _sizes_of_sockarrays() -> str:
    with _listener_in(4) as (array, _), _sockarray(2) as empty, _outer(empty) as outer:
        outer.update_u32(0, array.fd)
    return "put one of 4 slots in place of one of 2"


def _outer(inner: bpf.Map) -> bpf.Map:
    return bpf.Map.create(bpf.MapType.ARRAY_OF_MAPS, "probe_outer", inner=inner)


_GROUP = ("CAP_SYS_ADMIN", "CAP_BPF")
PROBES = (
    Probe(name="sockarray with cookies", since="4.19", needs=_GROUP, run=_sockarray_cookies),
    Probe(name="array of sockarrays", since="4.19", needs=_GROUP, run=_array_of_sockarrays),
    Probe(name="sockarrays of any size", since="5.10", needs=_GROUP, run=_sizes_of_sockarrays),
)
