"""What the running kernel can do, found out by doing it in a throw-away network namespace.

Kernel versions say little: distributions port features back, and tcp_migrate_req is a file on some
5.10 kernels that have nothing behind it. A probe has three answers: yes, no, and could not tell.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool.errors import MissingCapability, NotFound, ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import (
    autolowat,
    bpf,
    bpffs,
    btf,
    bytecode,
    capabilities,
    cgroup,
    compiler,
    libc,
    links,
    loopback,
    netns,
    pidfd,
    program,
    sockets,
    sysctl,
)
from reuseport_tool.kernel.bytecode import Verdict
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.loopback import Moved
from reuseport_tool.kernel.program import AttachType, ProgramType
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.models import Engine, Feature

MIGRATION_BY_PROGRAM = "migration by program"
MIGRATION_WAKES = "migration wakes readers"
PIDFD_GETFD = "pidfd_getfd"
BPFFS = "bpffs"

_PORT = 8080  # of a namespace where nothing else is
_ABSENT = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOPROTOOPT,
    errno.EAFNOSUPPORT,
    errno.ENODEV,
    errno.ENOENT,
)
_CLONE_NEWNS, _MS_REC_PRIVATE = 0x00020000, 0x4000 | 1 << 18
_TCPI_OPT_SYN_DATA = 32
# TFO_CLIENT_ENABLE, TFO_SERVER_ENABLE, TFO_CLIENT_NO_COOKIE, TFO_SERVER_COOKIE_NOT_REQD (include/net/tcp.h)
_FASTOPEN_WITHOUT_COOKIES = 0x1 | 0x2 | 0x4 | 0x200


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One feature and how to try it.

    Attributes:
        needs: the capabilities that trying it takes, for the answer where that is refused.
        run: does it; returns the detail of a yes, and raises otherwise. Unsupported, ProgramRejected and
            the errors of an absent feature (EINVAL, ENOSYS, …) mean no; anything else could not tell.
    """

    name: str
    minimum_kernel: str
    needs: tuple[str, ...]
    run: Callable[[], str]

    def answer(self) -> Feature:
        try:
            available, detail = True, self.run()
        except (MissingCapability, PermissionError) as error:
            available, detail = None, self._refused(error)
        except (Unsupported, ProgramRejected) as error:
            available, detail = False, error.message
        except ToolError as error:
            available, detail = _absent(error.__cause__), error.message
        except OSError as error:
            available, detail = _absent(error), error.args[-1]
        return Feature(name=self.name, available=available, detail=detail, minimum_kernel=self.minimum_kernel)

    def _refused(self, error: Exception) -> str:
        missing = capabilities.missing(self.needs)
        if missing:
            return f"not permitted: {', '.join(missing)} missing"
        return f"{error} (in spite of all capabilities: a user namespace, seccomp or lockdown?)"


def _absent(error: BaseException | None) -> bool | None:
    """False for the errors of an absent feature, None for those that tell nothing."""
    return False if isinstance(error, OSError) and error.errno in _ABSENT else None


def probe_all(bpffs_folder: Path | None = None) -> tuple[Feature, ...]:
    """Every feature of the kernel that the tool uses.

    Args:
        bpffs_folder: where pins are to be kept, None for the usual places.
    """
    pins = Probe(
        name=BPFFS,
        minimum_kernel="4.4",
        needs=("CAP_SYS_ADMIN", "CAP_BPF"),
        run=functools.partial(_bpffs, bpffs_folder),
    )
    return tuple(probe.answer() for probe in (*_PROBES, pins))


def migration_works() -> bool | None:
    """Whether a connection queued on a closing listener really moves (Linux 5.14).

    Tried once in a process, by net.ipv4.tcp_migrate_req in a throw-away namespace; None where that
    is not permitted. Programs use the same migration (net/core/sock_reuseport.c,
    reuseport_migrate_sock()).
    """
    moved = _moved()
    return None if moved is None else moved.accepted


def migration_wakes() -> bool | None:
    """Whether migration into an accept queue wakes who sleeps there; None where nothing migrates.

    CVE-2026-46015: it did not, from Linux 5.14 until the stable kernels of May 2026.
    """
    moved = _moved()
    return moved.woken if moved is not None and moved.accepted else None


def loads_migrating_program() -> bool:
    """Whether the kernel tells SELECT_OR_MIGRATE from other attach types. Raises OSError (EPERM).

    Kernels before 5.14 take any attach type for sk_reuseport and ignore it, so that a wrong one is
    tried, too (kernel/bpf/syscall.c, bpf_prog_load_check_attach_type()).
    """
    try:
        bytecode.load(Verdict.PASS, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE).close()
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    try:
        bytecode.load(Verdict.PASS, AttachType.TRACE_ITER).close()
    except OSError as error:
        if error.errno == errno.EINVAL:
            return True
        raise
    return False


@functools.cache
def _moved() -> Moved | None:
    try:
        return moved_by_sysctl()
    except Unsupported:
        return Moved(accepted=False, woken=False)
    except (ToolError, OSError):
        return None


def moved_by_sysctl(enabled: bool = True) -> Moved:
    """Let the kernel migrate one connection by itself.

    Raises:
        Unsupported: no such sysctl.
        MissingCapability, OSError: no namespace to try it in.
    """
    with netns.throw_away():
        sysctl.write(sysctl.TCP_MIGRATE_REQ, str(int(enabled)))
        return _close_one_of_two(None)


def moved_by_program(attach_type: int) -> Moved:
    """Let a program migrate one connection, with the sysctl off. Raises as moved_by_sysctl(), OSError."""
    with netns.throw_away(), bytecode.load(Verdict.PASS, attach_type) as passing:
        with suppress(Unsupported):
            sysctl.write(sysctl.TCP_MIGRATE_REQ, "0")
        return _close_one_of_two(passing)


def _close_one_of_two(attached: bpf.Program | None) -> Moved:
    with ExitStack() as stack:
        closing = stack.enter_context(loopback.listener(_PORT))
        if attached is not None:
            sockets.attach_program(closing.fileno(), attached)
        stack.enter_context(loopback.connect(_PORT))
        loopback.wait_queued(closing)
        target = stack.enter_context(loopback.listener(_PORT))
        return loopback.migrate(closing, target)


def _network_namespace() -> str:
    before = netns.identity()
    with netns.throw_away():
        if netns.identity() == before:
            raise Unsupported("unshare(2) made no new namespace")
        with loopback.listener(_PORT) as sock, loopback.connect(_PORT):
            loopback.wait_queued(sock)
    return "made one, connected over its loopback"


def _veth() -> str:
    with netns.throw_away():
        links.veth("probe0", "probe1")
        names = [name for _, name in socket.if_nameindex()]
        if "probe1" not in names:
            raise Unsupported("the pair was not made")
    return "made a pair"


def _bcc() -> str:
    source = program.bpf_dir() / "bench" / "bench_pass.c"
    kind, name = ProgramType.SK_REUSEPORT, source.stem
    try:
        # Not from the cache: the question is whether the compiler works.
        with compiler.compile_text(source.name, source.read_bytes(), {}) as compiled:
            code = compiled.functions[name]
            program.load_code(code, kind, AttachType.NONE, name=name, license_text=compiled.license).close()
    except MissingCapability:
        return "compiles without kernel headers; loading is not permitted"
    return "compiles and loads without kernel headers"


def _load() -> str:
    bytecode.load(Verdict.PASS).close()
    return "loaded one of two instructions"


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


def _attach() -> str:
    with netns.throw_away(), bytecode.load(Verdict.DROP) as dropping, loopback.listener(_PORT) as sock:
        sockets.attach_program(sock.fileno(), dropping)
        if _connects():
            raise Unsupported("the program is attached, and does not decide")
    return "the program refused a connection"


def _detach() -> str:
    with netns.throw_away(), bytecode.load(Verdict.DROP) as dropping, loopback.listener(_PORT) as sock:
        sockets.attach_program(sock.fileno(), dropping)
        sockets.detach_program(sock.fileno())
        if not _connects():
            raise Unsupported("the program is detached, and still decides")
    return "connections pass again"


def _connects() -> bool:
    try:
        loopback.connect(_PORT).close()
        return True
    except ConnectionRefusedError:
        return False


def _attach_type() -> str:
    if not loads_migrating_program():
        raise Unsupported("the kernel does not know the attach type")
    return "loaded one; a wrong attach type is refused"


def _by_sysctl() -> str:
    if not moved_by_sysctl().accepted:
        raise Unsupported(f"{sysctl.TCP_MIGRATE_REQ} is there, and moves nothing")
    return "tcp_migrate_req=1 moved a queued connection"


def _by_program() -> str:
    if not moved_by_program(AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE).accepted:
        raise Unsupported("a program of this type loads, and nothing moves")
    return "moved a queued connection, the sysctl being off"


def _wakes() -> str:
    moved = moved_by_sysctl()
    if not moved.accepted:
        raise ToolError("nothing migrates here")
    if not moved.woken:
        raise Unsupported("CVE-2026-46015: the connection moves, and who sleeps in epoll_wait is not woken")
    return "epoll_wait reported the moved connection"


def _pidfd_getfd() -> str:
    ours, child_end = socket.socketpair()
    with ours:
        with child_end:
            fd, inode = child_end.fileno(), os.fstat(child_end.fileno()).st_ino
            child = os.fork()
            if child == 0:
                ours.close()
                child_end.recv(1)
                os._exit(0)
        try:
            taken = pidfd.take_fd(child, fd)
            same = os.fstat(taken).st_ino == inode
            os.close(taken)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            os.waitpid(child, 0)
    if not same:
        raise Unsupported("it gave another descriptor")
    return "took a socket of a child process"


def _tcp_iterator() -> str:
    from reuseport_tool.kernel import iterator

    with netns.throw_away(), loopback.listener(_PORT, backlog=7) as sock:
        cookie = sockets.cookie(sock.fileno())
        with iterator.TcpListeners() as listeners:
            found = listeners.read().listeners.get(cookie)
    if found is None or found.backlog != 7:
        raise Unsupported("the iterator did not show a listener with its backlog")
    return "showed a listener with its queue and backlog"


def _btf() -> str:
    btf.offset("sock_common", "skc_state")
    return "/sys/kernel/btf/vmlinux"


def _sock_destroy() -> str:
    return f"BTF id {btf.function('bpf_sock_destroy')}"


def _bpffs(folder: Path | None) -> str:
    try:
        mounted = bpffs.find(folder)
    except NotFound as error:
        if folder is not None:
            raise Unsupported(error.message, hint=error.hint) from error
        _in_child(_mount_and_pin)
        return "not mounted; can be, and took a pin"
    _pin_in(mounted)
    return f"mounted at {mounted}, and took a pin"


def _pin_in(folder: Path) -> None:
    place = Place(folder) / f"{bpffs.HOME}-probe-{os.getpid()}"
    with bpf.Map.create(bpf.MapType.ARRAY, "probe") as array:
        bpffs.pin(array, place)
        place.unlink()


def _mount_and_pin() -> None:
    """Mount a bpffs where nobody else sees it. Moves the process into a mount namespace for good."""
    libc.unshare(_CLONE_NEWNS)
    libc.mount("none", "/", "none", _MS_REC_PRIVATE)
    folder = "/sys/fs/bpf" if os.path.isdir("/sys/fs/bpf") else tempfile.gettempdir()
    libc.mount("bpf", folder, "bpf")
    _pin_in(Path(folder))


def _in_child(action: Callable[[], None]) -> None:
    """Run in a child process. Raises the OSError that it raised."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(errno.EIO)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), os.strerror(abs(code)))


def _cgroup2() -> str:
    return f"mounted at {cgroup.root()}"


def _statistics() -> str:
    with (
        netns.throw_away(),
        bytecode.load(Verdict.PASS) as passing,
        loopback.listener(_PORT) as sock,
        bpf.enable_stats(),
    ):
        sockets.attach_program(sock.fileno(), passing)
        loopback.connect(_PORT).close()
        runs = passing.info().run_count
    if runs != 1:
        raise Unsupported(f"{runs} runs were counted for one connection")
    return "counted the one run of a program"


def _fast_open() -> str:
    with netns.throw_away(), loopback.listener(_PORT) as sock:
        sysctl.write("net.ipv4.tcp_fastopen", str(_FASTOPEN_WITHOUT_COOKIES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1)
        with socket.socket() as client:
            client.sendto(b"x", socket.MSG_FASTOPEN, sock.getsockname())
            loopback.wait_queued(sock)
            with sock.accept()[0] as accepted:
                options = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5]
    if not options & _TCPI_OPT_SYN_DATA:
        raise Unsupported("data in a SYN was not taken")
    return "took data from a SYN"


# Four bytes that say how many follow; few frames in a segment, which the verifier is quick with.
_PROBE_FRAMING = {
    "FRAMING_KIND": 0,
    "FRAMING_OFFSET": 0,
    "FRAMING_WIDTH": 4,
    "FRAMING_BIG": 1,
    "FRAMING_ADD": 4,
    "FRAMING_HEADER": 4,
    "FRAMING_MAX": 100,
    "FRAMES_MAX": 4,
    "ROLE": 3,
    "ARM_PORTS": 1,
    "ARM_ACTIVE": 1,
}


def _autolowat(engine: Engine) -> str:
    with netns.throw_away(), cgroup.throw_away() as folder, ExitStack() as stack:
        maps = autolowat.Maps.create(stack, [_PORT], "")
        programs = autolowat.load(engine, maps, _PROBE_FRAMING)
        for program_ in programs.values():
            stack.callback(program_.close)
        fd = cgroup.open_folder(folder)
        stack.callback(os.close, fd)
        for link in autolowat.attach(engine, programs, fd).values():
            stack.callback(link.close)
        maps.set_working(True)
        lowat = _lowat_of_a_begun_frame()
    if lowat != 4 + 7:
        raise Unsupported(f"the programs run, and SO_RCVLOWAT is {lowat} instead of {4 + 7}")
    return "SO_RCVLOWAT was the length of a frame that had begun"


def _lowat_of_a_begun_frame() -> int:
    with loopback.listener(_PORT) as listening, loopback.connect(_PORT) as client:
        loopback.wait_queued(listening)
        with listening.accept()[0] as server:
            server.setblocking(False)
            client.sendall(b"\0\0\0\7x")
            loopback.wait_received(server, 5)
            return server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


_NETNS = ("CAP_SYS_ADMIN",)
_GROUP = ("CAP_SYS_ADMIN", "CAP_BPF")
_PROBES = (
    Probe(name="network namespace", minimum_kernel="2.6.29", needs=_NETNS, run=_network_namespace),
    Probe(name="veth", minimum_kernel="2.6.29", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_veth),
    Probe(name="BCC", minimum_kernel="4.19", needs=(), run=_bcc),
    Probe(name="sk_reuseport program", minimum_kernel="4.19", needs=("CAP_BPF",), run=_load),
    Probe(name="sockarray with cookies", minimum_kernel="4.19", needs=_GROUP, run=_sockarray_cookies),
    Probe(name="array of sockarrays", minimum_kernel="4.19", needs=_GROUP, run=_array_of_sockarrays),
    Probe(name="sockarrays of any size", minimum_kernel="5.10", needs=_GROUP, run=_sizes_of_sockarrays),
    Probe(name="attach to a group", minimum_kernel="4.19", needs=_GROUP, run=_attach),
    Probe(name="detach from a group", minimum_kernel="5.3", needs=_GROUP, run=_detach),
    Probe(name="SELECT_OR_MIGRATE", minimum_kernel="5.14", needs=("CAP_BPF",), run=_attach_type),
    Probe(name="migration by sysctl", minimum_kernel="5.14", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_by_sysctl),
    Probe(name=MIGRATION_BY_PROGRAM, minimum_kernel="5.14", needs=(*_GROUP, "CAP_NET_ADMIN"), run=_by_program),
    Probe(name=MIGRATION_WAKES, minimum_kernel="May 2026", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_wakes),
    Probe(name=PIDFD_GETFD, minimum_kernel="5.6", needs=("CAP_SYS_PTRACE",), run=_pidfd_getfd),
    Probe(name="TCP iterator", minimum_kernel="5.9", needs=(*_GROUP, "CAP_PERFMON"), run=_tcp_iterator),
    Probe(name="BTF", minimum_kernel="5.4", needs=(), run=_btf),
    Probe(name="bpf_sock_destroy", minimum_kernel="6.5", needs=(), run=_sock_destroy),
    Probe(name="cgroup v2", minimum_kernel="4.5", needs=(), run=_cgroup2),
    Probe(name="BPF statistics", minimum_kernel="5.8", needs=_GROUP, run=_statistics),
    Probe(
        name="AutoLOWAT paired",
        minimum_kernel="5.18",
        needs=(*_GROUP, "CAP_NET_ADMIN"),
        run=functools.partial(_autolowat, Engine.PAIRED),
    ),
    Probe(
        name="AutoLOWAT native",
        minimum_kernel="none yet",
        needs=(*_GROUP, "CAP_NET_ADMIN"),
        run=functools.partial(_autolowat, Engine.NATIVE),
    ),
    Probe(name="TCP Fast Open server", minimum_kernel="3.7", needs=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), run=_fast_open),
)
