"""A BPF iterator over the descriptors of all processes: who holds which socket, in one walk inside the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from reuseport_tool.closing import Closing
from reuseport_tool.kernel import bpf, btf, process_id
from reuseport_tool.kernel.abi import HELD_SOCKET
from reuseport_tool.kernel.bpf_iterator import BpfIterator
from reuseport_tool.kernel.program import Source, bpf_dir

_OFFSETS = {
    "OFF_FILE_INODE": "file.f_inode",
    "OFF_MODE": "inode.i_mode",
    "OFF_NUMBER": "inode.i_ino",
}
_REMEMBERED = 1 << 15  # sockets
MAPS = ("SEEN_FD",)


def source() -> Source:
    """The program of HeldSockets."""
    defines = {**process_id.defines(), **btf.offsets(_OFFSETS)}
    return Source(path=bpf_dir() / "sockets" / "held_sockets.c", defines=defines, maps=MAPS)


def new_map() -> bpf.Map:
    """In which the program remembers what it wrote."""
    return bpf.Map.create(bpf.MapType.LRU_HASH, "seen", key_size=8, value_size=16, max_entries=_REMEMBERED)


class HeldSockets(Closing):
    """The loaded iterator, over the processes of our PID namespace. A context manager; raises as BpfIterator."""

    def __init__(self) -> None:
        with new_map() as seen:
            self._iterator = BpfIterator("task_file", source(), {MAPS[0]: seen.fd})

    def read(self) -> Iterator[tuple[int, int, int]]:
        """(inode, pid, fd) of every socket that a process holds, one descriptor a process, as the walk goes on.

        Where a process holds very many sockets, the same one may come again.
        """
        rest = b""
        for chunk in self._iterator.chunks():
            rest += chunk  # where pages are large, a read ends within a record
            whole = len(rest) - len(rest) % HELD_SOCKET.size
            yield from HELD_SOCKET.iter_unpack(rest[:whole])
            rest = rest[whole:]

    def close(self) -> None:
        self._iterator.close()
