"""Network namespaces, entered by the calling thread."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator

from reuseport_tool.errors import MissingCapability, NotFound, Unsupported, UsageError
from reuseport_tool.kernel import capabilities, libc, links

CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_RUN_NETNS = "/run/netns"
_NAMES = "--netns takes a name of 'ip netns list', a path, or pid:N"
_CURRENT = "/proc/thread-self/ns/net"


def resolve(name: str) -> str:
    """The path of a namespace given as a NAME of `ip netns`, a PATH, or `pid:N`.

    Raises:
        NotFound: no such namespace or process.
        MissingCapability: the process is not ours to look at.
        UsageError: the N of pid:N is not a number.
    """
    if name.startswith("pid:"):
        pid = name.removeprefix("pid:")
        if not re.fullmatch(r"\d{1,10}", pid, re.ASCII):
            raise UsageError(f"not a process id: {pid!r}", hint="write --netns pid:1234")
        path = f"/proc/{pid}/ns/net"
    else:
        path = name if "/" in name else f"{_RUN_NETNS}/{name}"
    try:
        os.stat(path)
    except PermissionError as error:
        raise MissingCapability(
            f"not permitted to see the network namespace {name!r}", hint="run as root, or grant CAP_SYS_PTRACE"
        ) from error
    except OSError as error:
        raise NotFound(f"no network namespace {name!r}", hint=_NAMES) from error
    return path


def enter(path: str) -> None:
    """Move the calling thread into the namespace at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
        try:
            libc.setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
    except OSError as error:
        raise _translate(error, path) from error


def key() -> str:
    """A name for the calling thread's namespace, in pins: its inode, and what the next one with that inode has not.

    An inode number is used again as soon as the namespace is gone. A cookie never is; before Linux 5.14 the namespace's
    kernel socket stands for it.
    """
    try:
        unique = cookie()
    except Unsupported:
        unique = _rtnetlink_inode()
    return f"{identity()}_{unique}"


def _rtnetlink_inode() -> int:
    """The inode of the kernel's own rtnetlink socket, which is as old as the calling thread's namespace.

    The kernel counts these inodes up (get_next_ino()), 2^32 of them before one comes again. In /proc/net/netlink
    (netlink_seq_show()) the socket is the one of protocol 0 and port ID 0.
    """
    with open("/proc/thread-self/net/netlink") as lines:
        for line in lines:
            _, protocol, port_id, *_, inode = line.split()
            if (protocol, port_id) == ("0", "0"):
                return int(inode)
    raise Unsupported("the kernel does not list its netlink sockets", hint="/proc has to be mounted, with net/netlink")


def keys() -> set[str]:
    """The key() of every namespace that a process is in or that has a name; its inode where it cannot be entered."""
    found = {key()}
    for path in reachable():
        with contextlib.suppress(OSError):
            inode = os.stat(path).st_ino
            try:
                with visit(path):
                    found.add(key())
            except (OSError, MissingCapability, NotFound):
                found.add(str(inode))
    return found


def identity() -> int:
    """The inode of the calling thread's namespace, as in `net:[4026531840]`."""
    return os.stat(_CURRENT).st_ino


def name() -> str:
    """What --netns takes for the calling thread's namespace: a name of `ip netns`, or pid:N."""
    here = identity()
    for path in sorted(glob.glob(f"{_RUN_NETNS}/*")):
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == here:
                return os.path.basename(path)
    return f"pid:{os.getppid()}"


def reachable() -> list[str]:
    """A path of every namespace that a process is in or that has a name."""
    paths = {}
    for pattern in ("/proc/[0-9]*/ns/net", f"{_RUN_NETNS}/*"):
        for path in glob.glob(pattern):
            with contextlib.suppress(OSError):
                paths[os.stat(path).st_ino] = path
    return list(paths.values())


def find(inode: int) -> str | None:
    """The path of the namespace with this inode; None when no process and no name holds it."""
    for path in reachable():
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            if os.stat(path).st_ino == inode:
                return path
    return None


def of(pid: int) -> str | None:
    """The path of a process's namespace, None when it is gone or not ours to look at."""
    path = f"/proc/{pid}/ns/net"
    return path if os.access(path, os.F_OK) else None


@contextlib.contextmanager
def visit(path: str) -> Iterator[None]:
    """Inside, the calling thread is in another namespace; at the end it is back in its own. Raises as enter().

    Its own namespace needs no right.
    """
    with contextlib.nullcontext() if _is_own(path) else _back_after(lambda: enter(path)):
        yield


def _is_own(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.stat(path), os.stat(_CURRENT))
    return False


@contextlib.contextmanager
def _back_after(leave: Callable[[], None]) -> Iterator[None]:
    """Leave the calling thread's namespace, and come back to it at the end."""
    saved = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        leave()
        try:
            yield
        finally:
            libc.setns(saved, CLONE_NEWNET)
    finally:
        os.close(saved)


def cookie() -> int:
    """SO_NETNS_COOKIE (Linux 5.14) of the calling thread's namespace: what bpf_get_netns_cookie() calls it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError as error:
            raise Unsupported("the kernel has no cookies of namespaces", hint="they came with Linux 5.14") from error


@contextlib.contextmanager
def throw_away() -> Iterator[None]:
    """Inside, the calling thread is in a new namespace whose loopback is up; at the end it is back in its own."""
    with _back_after(_unshare):
        _loopback_up()
        yield


def _unshare() -> None:
    try:
        libc.unshare(CLONE_NEWNET)
    except OSError as error:
        raise _translate(error, "a new one") from error


def _loopback_up() -> None:
    try:
        links.loopback_up()
    except PermissionError as error:
        raise MissingCapability(
            "setting up a network namespace is not permitted", hint=capabilities.hint("CAP_NET_ADMIN")
        ) from error


def _translate(error: OSError, path: str) -> Exception:
    if error.errno in (errno.EPERM, errno.EACCES):
        return MissingCapability(
            f"entering a network namespace ({path}) is not permitted", hint=capabilities.hint("CAP_SYS_ADMIN")
        )
    if error.errno in (errno.EINVAL, errno.ENOENT):
        return NotFound(f"not a network namespace: {path}", hint=_NAMES)
    return error
