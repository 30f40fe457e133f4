"""What sockets send, packet by packet, while somebody watches them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.kernel import bpf, btf
from reuseport_tool.kernel.abi import SENT
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, bpf_dir, load
from reuseport_tool.record import record

_OFFSETS = {"OFF_SK": "sk_buff.sk", "OFF_COOKIE": "sock_common.skc_cookie"}


@record
class Sent:
    """What a socket has sent since it is watched. `last_ns` is of CLOCK_MONOTONIC, 0 for never."""

    packets: int
    last_ns: int


class SentPackets(Closing):
    """Watches sockets by their cookies. A context manager.

    Raises:
        Unsupported: no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self, cookies: Collection[int]) -> None:
        self._cookies = tuple(cookies)
        with ExitStack() as stack:
            self._map = stack.enter_context(_watched(self._cookies))
            source_ = source()
            program = stack.enter_context(
                load(
                    source_,
                    source_.path.stem,
                    ProgramType.RAW_TRACEPOINT,
                    AttachType.NONE,
                    {"SENT_FD": self._map.fd},
                )
            )
            stack.enter_context(bpf.attach_raw_tracepoint(program, "net_dev_queue"))
            self._owned = stack.pop_all()

    def read(self) -> dict[int, Sent]:
        """By cookie."""
        values = {cookie: SENT.unpack(self._map.lookup(cookie)) for cookie in self._cookies}
        return {cookie: Sent(packets=packets, last_ns=last) for cookie, (packets, last) in values.items()}

    def close(self) -> None:
        """Stop watching."""
        self._owned.close()


def source() -> Source:
    """The program that counts."""
    return Source(path=bpf_dir() / "udp" / "udp_sent.c", defines=btf.offsets(_OFFSETS), maps=("SENT_FD",))


def _watched(cookies: Collection[int]) -> bpf.Map:
    watched = bpf.Map.create(
        bpf.MapType.HASH, "sent", key_size=8, value_size=SENT.size, max_entries=max(1, len(cookies))
    )
    for cookie in cookies:
        watched.update(cookie, bytes(SENT.size))
    return watched
