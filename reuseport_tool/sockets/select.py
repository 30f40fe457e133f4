"""Walk over the sockets of the network namespace and tell which match."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reuseport_tool.closing import Closing
from reuseport_tool.errors import MissingCapability, NotFound, UsageError
from reuseport_tool.group import state
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, links, netns, processes
from reuseport_tool.kernel.abi import NO_IDLE, SocketRecord, TcpState
from reuseport_tool.kernel.folders import Foreign
from reuseport_tool.kernel.processes import Holder
from reuseport_tool.kernel.socket_iterator import (
    SocketWalk,
    collector_paused,
    exactly_once,
    jiffies_per_second,
)
from reuseport_tool.models import Endpoint, Protocol, Socket, Sockets, SocketState

_NUMBERS: dict[SocketState, int] = {
    name: TcpState[name.name] for name in SocketState if name is not SocketState.UNCONNECTED
}
_NUMBERS[SocketState.UNCONNECTED] = TcpState.CLOSE
_NAMES: dict[Protocol, dict[int, str]] = {
    Protocol.TCP: {_NUMBERS[name]: str(name) for name in SocketState if name is not SocketState.UNCONNECTED},
    Protocol.UDP: {TcpState.ESTABLISHED: str(SocketState.ESTABLISHED), TcpState.CLOSE: str(SocketState.UNCONNECTED)},
}
_STATES_OF = {
    Protocol.TCP: frozenset(SocketState) - {SocketState.UNCONNECTED},
    Protocol.UDP: frozenset({SocketState.ESTABLISHED, SocketState.UNCONNECTED}),
}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A socket matches when it fits every field that is given.

    Attributes:
        endpoint: the local one; see _Place.
        pids: processes, one of which holds it.
        idle_s: a TCP connection without data for that long.
        older_than_s: known to be that old: by its age, or because it was idle for as long.
    """

    endpoint: Endpoint | None = None
    pids: tuple[int, ...] = ()
    generation: int | None = None
    states: tuple[SocketState, ...] = ()
    protocol: Protocol | None = None
    cookies: tuple[int, ...] = ()
    idle_s: float | None = None
    older_than_s: float | None = None

    @property
    def is_empty(self) -> bool:
        return self == Filter()

    def check(self) -> None:
        """Raises UsageError when the fields do not make sense together."""
        if self.generation is not None and self.endpoint is None:
            raise UsageError("a generation is one of an endpoint", hint="add --endpoint ENDPOINT")
        if self.endpoint is not None and self.protocol not in (None, self.endpoint.protocol):
            raise UsageError(
                f"{self.endpoint} is not {self.protocol}",
                hint=f"write --endpoint {self.protocol}://…, or no --protocol",
            )
        if self.states and not self.protocols:
            raise UsageError("no socket of that protocol is ever in that state", hint="UDP: established, unconnected")

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """Those that can match."""
        given = self.endpoint.protocol if self.endpoint else self.protocol
        possible = [protocol for protocol in Protocol if not self.states or _STATES_OF[protocol] & {*self.states}]
        return tuple(protocol for protocol in possible if given in (None, protocol))

    def state_mask(self) -> int:
        """The states as a mask of 1 << number; all where none is given."""
        return sum(1 << number for number in {_NUMBERS[name] for name in self.states or SocketState})


@dataclass(frozen=True)
class Found:
    """A socket that matches, as the kernel told it and as the model shows it."""

    protocol: Protocol
    raw: SocketRecord
    shown: Socket


class Walker(Closing):
    """The loaded iterators of some protocols. A context manager.

    Raises:
        Unsupported: no iterators (Linux 5.9), or no BTF.
        MissingCapability: CAP_BPF and CAP_PERFMON are needed.
    """

    def __init__(self, protocols: Collection[Protocol]) -> None:
        self.protocols = tuple(protocols)
        with ExitStack() as stack:
            self._walks = {protocol: stack.enter_context(SocketWalk(protocol)) for protocol in protocols}
            self._stack = stack.pop_all()

    def read(self) -> dict[Protocol, list[SocketRecord]]:
        """Walk once. Where the kernel may show a socket twice, it is here once."""
        found = {protocol: walk.read() for protocol, walk in self._walks.items()}
        for protocol, raws in found.items():
            if not exactly_once(protocol):
                found[protocol] = list({(raw.cookie, raw.state): raw for raw in raws}.values())
        return found

    def promise(self) -> bool | None:
        """Whether each walked protocol is iterated exactly once; None where one of them does not tell."""
        answers = {exactly_once(protocol) for protocol in self.protocols}
        return False if False in answers else None if None in answers else True

    def close(self) -> None:
        self._stack.close()


def sockets(wanted: Filter, root: Path | None) -> Sockets:
    """The sockets that match.

    Args:
        root: where the pins are, None for the usual places; for generations only.

    Raises:
        UsageError: the filter contradicts itself.
        NotFound: no process with such a pid, or no such generation.
        Unsupported, MissingCapability: from the iterators.
    """
    wanted.check()
    require_processes(wanted.pids)
    with Walker(wanted.protocols) as walker:
        start = time.perf_counter()
        raws = walker.read()
        walk_s = time.perf_counter() - start
        found = select(wanted, raws, root)
        return Sockets(
            netns=f"net:[{netns.identity()}]",
            protocols=tuple(map(str, walker.protocols)),
            exactly_once=walker.promise(),
            walked=sum(map(len, raws.values())),
            walk_s=round(walk_s, 6),
            sockets=tuple(entry.shown for entry in found),
        )


def require_processes(pids: Iterable[int]) -> None:
    """Raises NotFound for one that does not run. One that ends later simply holds nothing."""
    for pid in pids:
        processes.Process(pid).close()


def select(wanted: Filter, raws: Mapping[Protocol, Sequence[SocketRecord]], root: Path | None) -> list[Found]:
    """Those of a walk that match, with their processes and generations. Raises NotFound (generation)."""
    with collector_paused():
        return _select(wanted, raws, root)


def _select(wanted: Filter, raws: Mapping[Protocol, Sequence[SocketRecord]], root: Path | None) -> list[Found]:
    matching = {protocol: _match(wanted, protocol, entries) for protocol, entries in raws.items()}
    groups = _groups(wanted, raws, root)
    owners = _Owners(
        [raw.inode for entries in matching.values() for raw in entries]
        + [inode for group in groups for inode in group.inodes]
    )
    found = []
    now = _Now.take()
    for protocol, entries in matching.items():
        for raw in entries:
            generation = _generation(protocol, raw, groups, owners) if groups else None
            if wanted.generation not in (None, generation) or not owners.one_holds(wanted.pids, raw.inode):
                continue
            found.append(Found(protocol, raw, _socket(protocol, raw, owners, generation, now)))
    return found


def _match(wanted: Filter, protocol: Protocol, raws: Sequence[SocketRecord]) -> list[SocketRecord]:
    """By what the kernel's record says alone."""
    tests: list[Callable[[SocketRecord], bool]] = []
    if wanted.endpoint is not None:
        tests.append(_Place(wanted.endpoint, raws).covers)
    if wanted.states:
        mask = wanted.state_mask()
        tests.append(lambda raw: bool(mask >> raw.state & 1))
    if wanted.cookies:
        cookies = frozenset(wanted.cookies)
        tests.append(lambda raw: raw.cookie in cookies)
    now = _Now.take()
    for least, known in ((wanted.idle_s, now.idle_s), (wanted.older_than_s, now.at_least_s)):
        if least is not None:
            tests.append(_at_least(least, known))
    return [raw for raw in raws if all(test(raw) for test in tests)]


def _at_least(least: float, known: Callable[[SocketRecord], float | None]) -> Callable[[SocketRecord], bool]:
    def test(raw: SocketRecord) -> bool:
        value = known(raw)
        return value is not None and value >= least

    return test


@dataclass(frozen=True)
class _Now:
    """The moment to which ages are told."""

    monotonic_us: float
    hertz: int

    @classmethod
    def take(cls) -> _Now:
        return cls(time.monotonic_ns() / 1000, jiffies_per_second())

    def idle_s(self, raw: SocketRecord) -> float | None:
        return None if raw.idle == NO_IDLE else round(raw.idle / self.hertz, 3)

    def age_s(self, raw: SocketRecord) -> float | None:
        return round((self.monotonic_us - raw.synack_us) / 1e6, 3) if raw.synack_us else None

    def at_least_s(self, raw: SocketRecord) -> float | None:
        """A lower bound of the age: data that came and went a while ago had a socket then."""
        age_s = self.age_s(raw)
        return self.idle_s(raw) if age_s is None else age_s


class _Place:
    """Which sockets an endpoint means.

    Without an address: all with that local port. With one: what is bound to exactly that address, and
    connections to it. A wildcard address also means the connections that its listeners get: to every local
    address of the family but those that another socket of the walk is bound to by name.
    """

    def __init__(self, endpoint: Endpoint, raws: Sequence[SocketRecord]) -> None:
        self._port = endpoint.port
        self._device = None if endpoint.device is None else _device_index(endpoint.device)
        self._address = _padded(endpoint.address) if endpoint.address is not None else None
        self._spellings = _spellings(endpoint.address) if endpoint.address is not None else set()
        self._family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
        bound = {raw.local for raw in raws if raw.local_port == self._port and self._is_bound(raw)}
        self._others = bound - {bytes(16)}

    def _is_bound(self, raw: SocketRecord) -> bool:
        return raw.family == self._family and raw.remote_port == 0

    def covers(self, raw: SocketRecord) -> bool:
        if raw.local_port != self._port or self._device not in (None, raw.device):
            return False
        if self._address is None:
            return True
        if raw.remote_port == 0 or any(self._address):
            return (raw.family, raw.local) in self._spellings
        return raw.family == self._family and raw.local not in self._others


def _device_index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NotFound(f"no network device {name!r}") from error


def _padded(address: str) -> bytes:
    return ipaddress.ip_address(address).packed.ljust(16, b"\0")


def _spellings(address: str) -> set[tuple[int, bytes]]:
    """An address by family, as an IPv6 socket has it, too, if it is one of IPv4 (::ffff:127.0.0.1)."""
    parsed = ipaddress.ip_address(address)
    plain = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else parsed
    if plain is None:
        return {(socket.AF_INET6, parsed.packed)}
    mapped = ipaddress.IPv6Address(f"::ffff:{plain}")
    return {(socket.AF_INET, _padded(str(plain))), (socket.AF_INET6, mapped.packed)}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """An attached group: where each registered listener belongs, and the inodes of the listeners."""

    endpoint: Endpoint
    place: _Place
    places: Mapping[int, int]
    inodes: Mapping[int, int]


def _groups(wanted: Filter, raws: Mapping[Protocol, Sequence[SocketRecord]], root: Path | None) -> list[_Group]:
    """The attached groups that matter, from our pins.

    Raises:
        NotFound: none has the wanted generation; or `root` is given and no bpffs.
    """
    try:
        folder = bpffs.find(root)
        groups = [
            _group(folder, endpoint, raws[protocol])
            for protocol in raws
            for endpoint in state.pinned(folder, wanted.endpoint or Endpoint(protocol=protocol, address=None, port=0))
        ]
    except (NotFound, Foreign, MissingCapability):  # nobody's pins, or somebody else's
        if root is not None or wanted.generation is not None:
            raise
        return []
    there = sorted({generation for group in groups for generation in group.places.values()})
    if wanted.generation is not None and wanted.generation not in there:
        raise NotFound(
            f"no generation {wanted.generation} of {wanted.endpoint} has listeners",
            hint=f"there are: {', '.join(map(str, there)) or 'none'}; name the processes by --pid",
        )
    return groups


def _group(folder: Path, endpoint: Endpoint, raws: Sequence[SocketRecord]) -> _Group:
    with State.open(state.group_folder(folder, endpoint)) as opened:
        places = {cookie: number for number in opened.generations() for _, cookie in opened.slots(number)}
    inodes = {raw.inode: places[raw.cookie] for raw in raws if raw.cookie in places}
    return _Group(endpoint=endpoint, place=_Place(endpoint, raws), places=places, inodes=inodes)


class _Owners:
    """Who holds which socket, found by one walk over /proc."""

    def __init__(self, inodes: Iterable[int]) -> None:
        self._holders = processes.holders({inode for inode in inodes if inode})
        self._topmost = cache(lambda pids: next(iter(processes.topmost(pids)), None))
        self.command = cache(processes.command)

    def pids(self, inode: int) -> frozenset[int]:
        return frozenset(holder.pid for holder in self._holders.get(inode, _NOBODY))

    def one_holds(self, pids: Collection[int], inode: int) -> bool:
        """Whether one of `pids` holds it; so for no pids."""
        return not pids or not self.pids(inode).isdisjoint(pids)

    def topmost(self, inode: int) -> int | None:
        pids = self.pids(inode)
        return self._topmost(pids) if pids else None


_NOBODY: list[Holder] = []


def _generation(protocol: Protocol, raw: SocketRecord, groups: Sequence[_Group], owners: _Owners) -> int | None:
    """The generation of a listener is where it is registered. A connection to the group's endpoint has the
    one of its process's listeners, if they are all of one generation."""
    for group in groups:
        if group.endpoint.protocol is not protocol:
            continue
        if raw.cookie in group.places:
            return group.places[raw.cookie]
        if raw.remote_port and group.place.covers(raw):
            pids = owners.pids(raw.inode)
            told = {number for inode, number in group.inodes.items() if pids & owners.pids(inode)}
            return told.pop() if len(told) == 1 else None
    return None


def _socket(protocol: Protocol, raw: SocketRecord, owners: _Owners, generation: int | None, now: _Now) -> Socket:
    pid = owners.topmost(raw.inode) if raw.inode else None
    listens = raw.state == TcpState.LISTEN
    has_queues = not listens and raw.state not in (TcpState.TIME_WAIT, TcpState.NEW_SYN_RECV)
    return Socket(
        protocol=str(protocol),
        state=_NAMES[protocol].get(raw.state, str(raw.state)),
        local=_address(raw.family, raw.local, raw.local_port, raw.device),
        remote=_address(raw.family, raw.remote, socket.ntohs(raw.remote_port), 0) if raw.remote_port else None,
        cookie=raw.cookie,
        pid=pid,
        command=owners.command(pid) if pid is not None else None,
        uid=raw.uid,
        inode=raw.inode or None,
        age_s=now.age_s(raw),
        idle_s=now.idle_s(raw),
        receive_queue=raw.receive_queue if has_queues else None,
        send_queue=raw.send_queue if has_queues else None,
        accept_queue=raw.receive_queue if listens else None,
        backlog=raw.send_queue if listens else None,
        generation=generation,
    )


def _address(family: int, address: bytes, port: int, device: int) -> str:
    if family == socket.AF_INET6:
        return f"[{socket.inet_ntop(family, address)}{_device(device)}]:{port}"
    return f"{socket.inet_ntop(family, address[:4])}{_device(device)}:{port}"


def _device(index: int) -> str:
    name = links.device_name(index)
    return f"%{name}" if name else ""
