"""Whether a queued connection moves when its listener closes, and wakes who waits for it."""

from __future__ import annotations

import functools
from contextlib import ExitStack, suppress

from reuseport_tool.errors import ToolError, Unsupported
from reuseport_tool.kernel import bpf, bytecode, loopback, netns, sockets, sysctl
from reuseport_tool.kernel.bytecode import Verdict
from reuseport_tool.kernel.loopback import Moved
from reuseport_tool.kernel.program import AttachType
from reuseport_tool.probes.engine import Probe

MIGRATION_BY_PROGRAM = "migration by program"
MIGRATION_WAKES = "migration wakes readers"

_PORT = 8080  # of a namespace where nothing else is


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


def _by_sysctl() -> str:
    if not moved_by_sysctl().accepted:
        raise Unsupported(f"{sysctl.TCP_MIGRATE_REQ} exists, but moves nothing")
    return "tcp_migrate_req=1 moved a queued connection"


def _by_program() -> str:
    if not moved_by_program(AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE).accepted:
        raise Unsupported("a program of this type loads, but nothing moves")
    return "moved a queued connection, the sysctl being off"


def _wakes() -> str:
    moved = moved_by_sysctl()
    if not moved.accepted:
        raise ToolError("nothing migrates here")
    if not moved.woken:
        raise Unsupported("CVE-2026-46015: the connection moves, but does not wake a server in epoll_wait")
    return "epoll_wait reported the moved connection"


_SYSCTL = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN")
PROBES = (
    Probe(name="migration by sysctl", since="5.14", needs=_SYSCTL, run=_by_sysctl),
    Probe(name=MIGRATION_BY_PROGRAM, since="5.14", needs=(*_SYSCTL, "CAP_BPF"), run=_by_program),
    # No release tells: stable branches took the fix of CVE-2026-46015 in May 2026.
    Probe(name=MIGRATION_WAKES, since=None, needs=_SYSCTL, run=_wakes),
)
