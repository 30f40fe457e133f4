"""Find the groups that an endpoint means, their listeners, and who holds them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from reuseport_tool.errors import Closed, MissingCapability, NotFound, ToolError, Unsupported
from reuseport_tool.kernel import capabilities, diag, netns, pidfd, processes, rlimit, sockets
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.models import Endpoint, Identity, Protocol
from reuseport_tool.waiting import wait_until

_OTHER_FILES = 256  # that may be open beside the listeners
_CLOSING_S = 1.0  # from the end of a process to that of its sockets


@dataclass(frozen=True)
class Member:
    """A bound socket of a group and the processes that hold it (empty when none does)."""

    socket: diag.BoundSocket
    holders: tuple[Holder, ...]

    @property
    def cookie(self) -> int:
        return self.socket.cookie

    def owner(self, masters: processes.Masters) -> int | None:
        """The topmost holder: the master, not its workers."""
        pids = masters.topmost([holder.pid for holder in self.holders])
        return pids[0] if pids else None


_SHOWN = "'status' shows what listens now"


@dataclass(frozen=True)
class PresentGroup:
    """A group: all sockets that are bound to one endpoint. They have SO_REUSEPORT if there are several;
    a single one may lack it (see `require_reuseport`)."""

    endpoint: Endpoint
    members: tuple[Member, ...]

    @property
    def identity(self) -> Identity | None:
        """What a socket must have to join, None for a group without sockets."""
        if not self.members:
            return None
        return Identity(endpoint=self.endpoint, uid=self.members[0].socket.uid, netns=netns.identity())

    def owners(self) -> list[int]:
        """The topmost processes over all members."""
        return processes.topmost({holder.pid for member in self.members for holder in member.holders})

    @property
    def cookies(self) -> tuple[int, ...]:
        return tuple(member.cookie for member in self.members)


def sockets_of(endpoint: Endpoint) -> dict[Endpoint, list[diag.BoundSocket]]:
    """The sockets of each group that the endpoint means, by endpoint; lowest cookie first."""
    found = _by_group(diag.bound_sockets(endpoint.protocol, endpoint.port, endpoint.address))
    return {group: found[group] for group in endpoint.among(found)}


def now(group: Endpoint) -> PresentGroup:
    """A group as it is now, with its holders; without members when all of them are closed."""
    return with_holders({group: sockets_in(group)})[0]


def present(group: Endpoint) -> PresentGroup:
    """As now(). Raises NotFound when nothing listens there any more."""
    found = now(group)
    if not found.members:
        raise NotFound(f"nothing listens on {group} any more", hint=_SHOWN)
    return found


def all_present(endpoint: Endpoint, groups: Collection[Endpoint]) -> list[PresentGroup]:
    """Several groups that an endpoint means, as they are now, by one look. Raises as present()."""
    sockets = sockets_of(endpoint)
    for group in groups:
        if group not in sockets:
            raise NotFound(f"nothing listens on {group} any more", hint=_SHOWN)
    return with_holders({group: sockets[group] for group in groups})


def sockets_in(group: Endpoint) -> list[diag.BoundSocket]:
    """The sockets of one group, without their holders: cheaper by a walk over /proc."""
    return sockets_of(group).get(group, [])


def all_groups(protocol: Protocol) -> dict[Endpoint, list[diag.BoundSocket]]:
    """The sockets of every group of the protocol, as sockets_of()."""
    return _by_group(diag.bound_sockets(protocol))


def _by_group(entries: Iterable[diag.BoundSocket]) -> dict[Endpoint, list[diag.BoundSocket]]:
    found: dict[Endpoint, list[diag.BoundSocket]] = {}
    for entry in sorted(entries, key=lambda entry: entry.cookie):
        found.setdefault(entry.endpoint, []).append(entry)
    return found


def with_holders(groups: dict[Endpoint, list[diag.BoundSocket]], at_most: int | None = None) -> list[PresentGroup]:
    """Add the holders, of each socket `at_most` so many, with one walk over /proc."""
    held = processes.holders([entry.inode for entries in groups.values() for entry in entries], at_most=at_most)
    return [
        PresentGroup(endpoint, tuple(Member(entry, tuple(held[entry.inode])) for entry in entries))
        for endpoint, entries in groups.items()
    ]


def groups(endpoint: Endpoint) -> list[PresentGroup]:
    """The groups that the endpoint means.

    Raises:
        NotFound: nothing listens there; the hint names what listens on the port in other ways.
        Unsupported: it listens with MPTCP.
    """
    found = with_holders(sockets_of(endpoint))
    if not found:
        raise NotFound(f"nothing listens on {endpoint}", hint=_elsewhere(endpoint))
    for group in found:
        refuse_mptcp(group.members)
    return found


def refuse_mptcp(members: Sequence[Member]) -> None:
    """Raises Unsupported for a listener with MPTCP.

    The kernel lets no program be attached to it (EOPNOTSUPP). With net.ipv4.tcp_migrate_req it moves the connections
    of plain TCP clients; those of MPTCP clients count as moved, are accepted, and no data ever arrives on them.
    """
    for member in members:
        if member.socket.mptcp:
            raise Unsupported(
                f"the listener on {member.socket.endpoint} uses MPTCP: the kernel runs no reuseport program for it, "
                "and a connection of an MPTCP client does not survive migration",
                hint="start the server without MPTCP: for Go with GODEBUG=multipathtcp=0, for any server with "
                "'sysctl net.mptcp.enabled=0'",
            )


def _elsewhere(endpoint: Endpoint) -> str:
    same_port = {str(entry.endpoint) for entry in diag.bound_sockets(endpoint.protocol, endpoint.port)}
    if same_port:
        return f"on that port there is: {', '.join(sorted(same_port))}"
    return "'status' lists what listens here; --netns NAME looks into another network namespace"


@contextlib.contextmanager
def descriptors(members: Sequence[Member]) -> Iterator[dict[int, int]]:
    """Our own copies of listeners, cookie → fd, closed at the end.

    While this lasts the listeners cannot be closed by their servers, so it is to be short. Listeners that closed after
    they were seen are left out.

    Raises:
        Closed: every one has closed.
        NotFound: no process holds a listener.
        MissingCapability, Unsupported: from pidfd_getfd(2).
    """
    fds: dict[int, int] = {}
    with rlimit.at_best(len(members) + _OTHER_FILES):
        try:
            for member in members:
                with contextlib.suppress(Closed):
                    fds[member.cookie] = take(member)
            if members and not fds:
                raise Closed(f"the listeners on {members[0].socket.endpoint} have closed")
            yield fds
        finally:
            for fd in fds.values():
                os.close(fd)


def take(member: Member) -> int:
    """A copy of a listener, which the caller closes. Raises as descriptors()."""
    refuse_mptcp([member])
    fd = _copy(member, member.holders)
    if fd is None:  # another process may hold it by now
        fd = _copy(member, processes.holders([member.socket.inode])[member.socket.inode])
    if fd is not None:
        return fd
    # A process that ends is seen to hold nothing a moment before its sockets are closed.
    if wait_until(lambda: not _is_bound(member), _CLOSING_S):
        raise Closed(f"the listener with cookie {member.cookie} on {member.socket.endpoint} has closed")
    require_visible([member])
    raise NotFound(
        f"no process holds the listener with cookie {member.cookie} on {member.socket.endpoint}",
        hint="a process of another PID namespace may hold it",
    )


def _is_bound(member: Member) -> bool:
    return any(entry.cookie == member.cookie for entry in sockets_in(member.socket.endpoint))


def _copy(member: Member, holders: Iterable[Holder]) -> int | None:
    """A copy from the first of these that has it still."""
    for holder in holders:
        with contextlib.suppress(NotFound):
            fd = pidfd.take_fd(holder.pid, holder.fd)
            # The number may mean another file by now: the cookie tells.
            with contextlib.suppress(OSError):
                if sockets.cookie(fd) == member.cookie:
                    return fd
            os.close(fd)
    return None


def require_visible(members: Sequence[Member]) -> None:
    """Raises MissingCapability where a listener may well have a holder, which we are not permitted to see."""
    for member in members:
        if not member.holders and processes.some_are_hidden():
            raise MissingCapability(
                f"not permitted to see who holds the listener on {member.socket.endpoint}",
                hint=capabilities.hint("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"),
            )


_WITH_REUSEPORT = {
    Protocol.TCP: "start the server with it: nginx 'listen … reuseport', gunicorn --reuse-port, haproxy by default",
    Protocol.UDP: "start the server with it, if it can: unbound 'so-reuseport: yes', NSD 'reuseport: yes', dnsdist "
    "'reusePort=true', BIND by default",
}


def require_reuseport(fds: dict[int, int], endpoint: Endpoint) -> None:
    """Raises ToolError when a listener lacks SO_REUSEPORT, so that no other could join it."""
    for fd in fds.values():
        if not sockets.is_reuseport(fd):
            raise ToolError(
                f"the listener on {endpoint} does not have SO_REUSEPORT",
                hint=_WITH_REUSEPORT[endpoint.protocol],
            )
