"""A BPF iterator: a program that the kernel runs for each object of a kind, and that writes records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from reuseport_tool.closing import Closing
from reuseport_tool.kernel import bpf
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, load

_CHUNK_BYTES = 1 << 16


class BpfIterator(Closing):
    """A loaded program of an iterator. A context manager.

    Each walk goes over the objects that the calling thread sees: sockets of its network namespace, or processes of its
    PID namespace.

    Args:
        over: tcp, udp, task_file: the source's function is bpf_iter__<over>.
        values: as for Module.load().

    Raises:
        Unsupported: no such iterator, or no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
        ProgramRejected: from loading.
    """

    def __init__(self, over: str, source: Source, values: Mapping[str, int] = MappingProxyType({})) -> None:
        function = f"bpf_iter__{over}"
        with load(source, function, ProgramType.TRACING, AttachType.TRACE_ITER, values) as program:
            self._link = bpf.attach_iterator(program)

    def read(self, chunk_bytes: int = _CHUNK_BYTES) -> bytes:
        """Walk once. Returns what the program wrote.

        Args:
            chunk_bytes: of one read(2), at least a record. Between two the kernel holds no lock, and objects come and
                go; it gives at most 32 KiB at a time (kernel/bpf/bpf_iter.c).
        """
        return b"".join(self.chunks(chunk_bytes))

    def chunks(self, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[bytes]:
        """As read(), while the walk goes on."""
        with self.walk() as read:
            yield from iter(lambda: read(chunk_bytes), b"")

    @contextmanager
    def walk(self) -> Iterator[Callable[[int], bytes]]:
        """A walk that goes on while it is read: what read(2) gives, of at most so many bytes.

        The kernel visits objects until it has so many bytes, or none is left.
        """
        with bpf.create_iterator(self._link) as walk:
            yield lambda size: os.read(walk.fd, size)

    def close(self) -> None:
        self._link.close()
