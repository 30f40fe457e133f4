"""The receive queue callback of vagrant/kernel/, case by case: what AutoLOWAT will stand on.

Each case opens a connection over the loopback in a cgroup with the programs of rcvq.c, and says in
one assertion what must be true. A case's docstring is its claim.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import bpf, btf, cgroup
from reuseport_tool.kernel.bpf import Map, MapType
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, load_all

ARM_ON_ESTABLISHED, LOWAT_QUEUED, LOWAT_RECEIVED, DISARM = range(4)
QUEUED, RECEIVED, BYTES, LAST_WORD, KFUNC, SETSOCKOPT, ARM, OPT_IN, LOAD_WITHOUT_SKB = range(9)
PROGRAMS = {
    "rcvq": (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "opt_in": (ProgramType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
}
KFUNCS = {"RCVLOWAT_ID": "bpf_sock_ops_tcp_set_rcvlowat", "CAST_ID": "bpf_cast_to_kern_ctx"}
SOCKMAP = 15
IPPROTO_MPTCP = 262
OPT_LEVEL, OPT_NAME = 0xDEADBEEF - 2**32, 0x8BADF00D - 2**32
TRACING = Path("/sys/kernel/tracing")
DEADLINE_S = 10.0


class Bench:
    """The loaded programs with their maps, and the socket pairs to try them on."""

    def __init__(self, settings: Map, seen: Map) -> None:
        self._settings = settings
        self._seen = seen

    def reset(self, **settings: int) -> None:
        """Set the named settings, everything else to 0, and forget what was seen."""
        for key in range(4):
            self._settings.update_u32(key, 0)
        for key in range(9):
            self._seen.update_u32(key, 0)
        for name, value in settings.items():
            self._settings.update_u32(globals()[name.upper()], value)

    def set(self, key: int, value: int) -> None:
        self._settings.update_u32(key, value)

    def seen(self, key: int) -> int:
        """A signed number that the program left."""
        return int(struct.unpack("<i", self._seen.lookup(key))[0])

    def opt_in(self, sock: socket.socket, value: int = 1) -> int:
        """Ask for the callback; the kernel's answer: 0 or a negative errno."""
        sock.setsockopt(OPT_LEVEL, OPT_NAME, value)
        return self.seen(OPT_IN)

    def wait_seen(self, key: int, least: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.seen(key) < least:
            assert time.monotonic() < deadline, f"seen[{key}] stays at {self.seen(key)}, wanted {least}"
            time.sleep(0.005)


@contextlib.contextmanager
def pair(protocol: int = 0, *, fast_open: bytes = b"") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and the accepted socket; the client's first bytes travel in the SYN with `fast_open`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener, contextlib.ExitStack() as stack:
        if fast_open:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol))
        if fast_open:
            client.sendto(fast_open, socket.MSG_FASTOPEN, listener.getsockname())
        else:
            client.connect(listener.getsockname())
        if protocol == 0:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server, _ = listener.accept()
        stack.enter_context(server)
        yield client, server


@contextlib.contextmanager
def opted_in(bench: Bench) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair() whose server has asked for the callback."""
    with pair() as (client, server):
        assert bench.opt_in(server) == 0
        yield client, server


@contextlib.contextmanager
def wake_ups() -> Iterator[Callable[[], int]]:
    """Counts the calls of sock_def_readable() with a kprobe."""
    kprobe_event("p:rcvq_wake sock_def_readable")
    enable = TRACING / "events/kprobes/rcvq_wake/enable"
    try:
        enable.write_text("1")
        (TRACING / "trace").write_text("")
        yield lambda: (TRACING / "trace").read_text().count("rcvq_wake:")
    finally:
        enable.write_text("0")
        kprobe_event("-:rcvq_wake")


def kprobe_event(line: str) -> None:
    """Without O_TRUNC, which would remove everyone's probes, and without the seek of Python's own "a"."""
    fd = os.open(TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def edge_poll(sock: socket.socket) -> select.epoll:
    """Edge-triggered: an event is a wake-up that happened, not a queue that looks readable now."""
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN | select.EPOLLET)
    return poll


def case_enable_disable(bench: Bench) -> None:
    """The flag switches the callback on and off, and the program can switch itself off."""
    bench.reset()
    with pair() as (client, server):
        client.sendall(b"off!")
        assert server.recv(4) == b"off!"
        assert bench.seen(QUEUED) == bench.seen(RECEIVED) == 0
        assert bench.opt_in(server) == 0
        client.sendall(b"on!!")
        bench.wait_seen(QUEUED, 1)
        assert server.recv(4) == b"on!!"
        assert bench.opt_in(server, 0) == 0
        client.sendall(b"off!")
        assert server.recv(4) == b"off!"
        assert (bench.seen(QUEUED), bench.seen(BYTES)) == (1, 4)
        bench.set(DISARM, 1)
        assert bench.opt_in(server) == 0
        for _ in range(3):
            client.sendall(b"once")
            assert server.recv(4) == b"once"
        assert bench.seen(QUEUED) == 2


def case_both_call_sites(bench: Bench) -> None:
    """It is called per skb with readable payload, and after recvmsg() without an skb."""
    bench.reset()
    with opted_in(bench) as (client, server):
        client.sendall(b"0123ABCD")
        bench.wait_seen(QUEUED, 1)
        assert bench.seen(BYTES) == 8
        assert struct.pack("<i", bench.seen(LAST_WORD)) == b"ABCD"
        assert bench.seen(RECEIVED) == 0
        assert server.recv(8) == b"0123ABCD"
        assert bench.seen(RECEIVED) >= 1
        assert bench.seen(LOAD_WITHOUT_SKB) == -errno.EPERM


def case_not_linear(bench: Bench) -> None:
    """bpf_skb_load_bytes() reads payload that is in pages."""
    bench.reset()
    with opted_in(bench) as (client, _):
        client.sendall(b"x" * 30000 + b"TAIL")
        bench.wait_seen(BYTES, 30004)
        assert struct.pack("<i", bench.seen(LAST_WORD)) == b"TAIL"


def case_fast_open(bench: Bench) -> None:
    """Data in a SYN passes the callback, when the program arms itself as the connection is established."""
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(0x1 | 0x2 | 0x4 | 0x200 | 0x400))
    bench.reset(arm_on_established=1)
    with pair(fast_open=b"SYN+data") as (_, server):
        bench.wait_seen(BYTES, 8)
        assert struct.pack("<i", bench.seen(LAST_WORD)) == b"data"
        assert server.recv(8) == b"SYN+data"


def case_out_of_order(bench: Bench) -> None:
    """Segments that waited out of order pass it in order, each byte once, when the hole is filled."""
    bench.reset()
    with opted_in(bench) as (client, server):
        with reordered():
            before, total = ofo_queued(), 0
            deadline = time.monotonic() + DEADLINE_S
            while ofo_queued() == before or total < 400:
                assert time.monotonic() < deadline, "netem reordered nothing"
                client.sendall(b"%04d" % (total % 10000))
                total += 4
            received = b""
            while len(received) < total:
                received += server.recv(1 << 16)
        assert bench.seen(BYTES) == total, (bench.seen(BYTES), total)


def case_euclean(bench: Bench) -> None:
    """It is refused while data waits, and to be had again when the queue is drained."""
    bench.reset()
    with pair() as (client, server):
        client.sendall(b"wait")
        assert select.select([server], [], [], DEADLINE_S)[0]
        assert bench.opt_in(server) == -errno.EUCLEAN
        assert server.recv(4) == b"wait"
        assert bench.opt_in(server) == 0


def case_mptcp(bench: Bench) -> None:
    """It is refused on the subflows of an MPTCP connection."""
    bench.reset(arm_on_established=1)
    with pair(IPPROTO_MPTCP):
        assert bench.seen(ARM) == -errno.EOPNOTSUPP, bench.seen(ARM)


def case_sockmap(bench: Bench) -> None:
    """It excludes SOCKMAP on the same socket, in both orders."""
    bench.reset()
    with pair() as (_, server), sockmap() as sockets:
        assert bench.opt_in(server) == 0
        assert put(sockets, server) == errno.EOPNOTSUPP
        assert bench.opt_in(server, 0) == 0
        assert put(sockets, server) == 0
        assert bench.opt_in(server) == -errno.EOPNOTSUPP


def case_no_wake_up_while_queueing(bench: Bench) -> None:
    """Setting the mark while queueing wakes nobody: silence below it, one wake-up per segment above it."""
    bench.reset(lowat_queued=100)
    with opted_in(bench) as (client, server), edge_poll(server) as poll, wake_ups() as woken:
        for number in range(1, 4):
            client.sendall(b"frag")
            bench.wait_seen(QUEUED, number)
        assert woken() == 0
        assert poll.poll(0) == []
        bench.set(LOWAT_QUEUED, 1)
        client.sendall(b"last")
        assert poll.poll(DEADLINE_S)
        assert woken() == 1, woken()
        assert bench.seen(KFUNC) == 0


def case_wake_up_after_recvmsg(bench: Bench) -> None:
    """Lowering the mark after recvmsg() wakes the reader, because nothing else will."""
    bench.reset(lowat_queued=100)
    with opted_in(bench) as (client, server), edge_poll(server) as poll:
        client.sendall(b"0123456789")
        bench.wait_seen(QUEUED, 1)
        assert poll.poll(0) == []
        assert server.recv(4, socket.MSG_DONTWAIT) == b"0123"
        assert poll.poll(0) == []
        bench.set(LOWAT_RECEIVED, 4)
        assert server.recv(2, socket.MSG_DONTWAIT) == b"45"
        assert poll.poll(0) != []
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 4


def case_negative_is_int_max(bench: Bench) -> None:
    """A negative mark counts as INT_MAX: as far as the receive buffer goes."""
    bench.reset(lowat_queued=0xFFFFFFFF)
    with opted_in(bench) as (client, server):
        client.sendall(b"data")
        bench.wait_seen(QUEUED, 1)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) > 1 << 20


def case_setsockopt_stays_closed(bench: Bench) -> None:
    """bpf_setsockopt() is refused inside the callback."""
    bench.reset()
    with opted_in(bench) as (client, _):
        client.sendall(b"data")
        bench.wait_seen(QUEUED, 1)
        assert bench.seen(SETSOCKOPT) == -errno.EOPNOTSUPP


@contextlib.contextmanager
def reordered() -> Iterator[None]:
    """The loopback delays some packets and lets others overtake them."""
    tc("add", "netem", "delay", "20ms", "reorder", "40%", "gap", "3")
    try:
        yield
    finally:
        tc("del")


def tc(verb: str, *what: str) -> None:

    subprocess.run(["tc", "qdisc", verb, "dev", "lo", "root", *what], check=True)


def ofo_queued() -> int:
    """TcpExt TCPOFOQueue."""
    names, values = (
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt")
    )
    return int(values[names.index("TCPOFOQueue")])


@contextlib.contextmanager
def sockmap() -> Iterator[Map]:
    with Map.create(SOCKMAP, "proof", max_entries=1) as sockets:  # type: ignore[arg-type]
        yield sockets


def put(sockets: Map, sock: socket.socket) -> int:
    """0, or the errno of the refusal, -1 when it has none."""
    try:
        sockets.update_u32(0, sock.fileno())
    except ToolError as error:
        return getattr(error.__cause__, "errno", -1)
    return 0


CASES = {name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


def prove() -> tuple[str, str]:
    """Whether every case is as it claims; the detail names those that are not."""
    op, flag = btf.enumerator("BPF_SOCK_OPS_RCVQ_CB"), btf.enumerator("BPF_SOCK_OPS_RCVQ_CB_FLAG")
    try:
        kfuncs = {constant: btf.function(name) for constant, name in KFUNCS.items()}
    except Unsupported:
        kfuncs = {}
    if op is None or flag is None or not kfuncs:
        return "no", "this kernel has no BPF_SOCK_OPS_RCVQ_CB"
    with bench(op, flag, kfuncs) as ready:
        failed = [name for name, case in CASES.items() if not passes(name, case, ready)]
    return ("no", f"failed: {', '.join(failed)}") if failed else ("yes", f"{len(CASES)} cases")


def passes(name: str, case: Callable[[Bench], None], ready: Bench) -> bool:
    try:
        case(ready)
    except (AssertionError, OSError, ToolError) as error:
        print(f"rcvq {name}: FAILED at line {error.__traceback__ and last_line(error)}: {error}", flush=True)
        return False
    print(f"rcvq {name}: ok. {(case.__doc__ or '').strip()}", flush=True)
    return True


def last_line(error: BaseException) -> int:
    """The line of this file where it happened."""
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == __file__:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


@contextlib.contextmanager
def bench(op: int, flag: int, kfuncs: dict[str, int]) -> Iterator[Bench]:
    """The programs, loaded and attached to a cgroup that we are in."""
    settings = Map.create(MapType.ARRAY, "settings", max_entries=4)
    seen = Map.create(MapType.ARRAY, "seen", max_entries=9)
    with contextlib.ExitStack() as stack:
        maps = {"SETTINGS_FD": stack.enter_context(settings).fd, "SEEN_FD": stack.enter_context(seen).fd}
        folder = os.open(stack.enter_context(cgroup.throw_away()), os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, folder)
        programs = load_all(source(op, flag, tuple(maps)), PROGRAMS, maps | kfuncs)
        for program, (_, where) in zip(programs, PROGRAMS.values(), strict=True):
            stack.enter_context(program)
            stack.enter_context(bpf.attach_cgroup(program, folder, where))
        yield Bench(settings, seen)


def source(op: int, flag: int, maps: tuple[str, ...]) -> Source:
    defines = {
        "RCVQ_OP": op,
        "RCVQ_FLAG": flag,
        "SKB_OFFSET": btf.offset("bpf_sock_ops_kern", "skb"),
        "SEQ_OFFSET": btf.offset("sk_buff", "cb") + btf.offset("tcp_skb_cb", "seq"),
    }
    path = Path(__file__).with_suffix(".c")
    return Source(path=path, defines=defines, maps=maps, kfuncs=tuple(KFUNCS), is_ours=False)
