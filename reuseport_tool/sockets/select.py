"""Walk over the sockets of the network namespace and tell which match."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, UsageError
from reuseport_tool.group import places
from reuseport_tool.group.endpoint_sockets import EndpointSockets
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, netns, processes
from reuseport_tool.kernel.abi import SocketRecord
from reuseport_tool.kernel.folders import Foreign
from reuseport_tool.kernel.socket_iterator import Walker, collector_paused
from reuseport_tool.models import Endpoint, Protocol, Socket, Sockets, SocketState, SocketTable
from reuseport_tool.record import record
from reuseport_tool.sockets.shown import NUMBERS, Moment, SocketOwners, show

_STATES_OF = {
    Protocol.TCP: frozenset(SocketState) - {SocketState.UNCONNECTED},
    Protocol.UDP: frozenset({SocketState.ESTABLISHED, SocketState.UNCONNECTED}),
}


@record
class Filter:
    """A socket matches when it fits every field that is given.

    Attributes:
        endpoint: the local one; see EndpointSockets.
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
            raise UsageError("--generation needs an endpoint", hint="add --endpoint ENDPOINT")
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
        return sum(1 << number for number in {NUMBERS[name] for name in self.states or SocketState})


@dataclass(frozen=True)
class Matching:
    """A socket that matches, as the kernel told it and as the model shows it."""

    protocol: Protocol
    raw: SocketRecord
    shown: Socket


@dataclass(frozen=True)
class Selection:
    """The sockets of one protocol that match, as the kernel told them and as the model shows them."""

    protocol: Protocol
    raws: Sequence[SocketRecord]
    shown: SocketTable

    def __iter__(self) -> Iterator[Matching]:
        return map(Matching, repeat(self.protocol), self.raws, self.shown)


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
        found = selections(wanted, raws, root)
        return Sockets(
            netns=f"net:[{netns.identity()}]",
            protocols=tuple(map(str, walker.protocols)),
            exactly_once=walker.promise(),
            walked=sum(map(len, raws.values())),
            walks=walker.walks,
            walk_s=round(walk_s, 6),
            sockets=SocketTable.joined(selection.shown for selection in found),
        )


def require_processes(pids: Iterable[int]) -> None:
    """Raises NotFound for one that does not run. One that ends later simply holds nothing."""
    for pid in pids:
        processes.Process(pid).close()


def select(wanted: Filter, raws: Mapping[Protocol, Sequence[SocketRecord]], root: Path | None) -> list[Matching]:
    """Those of a walk that match, one by one. Raises as selections()."""
    return list(chain.from_iterable(selections(wanted, raws, root)))


def selections(wanted: Filter, raws: Mapping[Protocol, Sequence[SocketRecord]], root: Path | None) -> list[Selection]:
    """Those of a walk that match, with their processes and generations. Raises NotFound (generation)."""
    with collector_paused():
        matching = {protocol: _match(wanted, protocol, entries) for protocol, entries in raws.items()}
        groups = _groups(wanted, raws, root)
        owners, now = SocketOwners(), Moment.take()
        return [_selection(wanted, protocol, entries, groups, owners, now) for protocol, entries in matching.items()]


def _selection(
    wanted: Filter,
    protocol: Protocol,
    raws: Sequence[SocketRecord],
    groups: Sequence[_Group],
    owners: SocketOwners,
    now: Moment,
) -> Selection:
    if wanted.pids:
        raws = [raw for raw in raws if owners.one_holds(wanted.pids, raw.inode)]
    generations: list[int | None] = [None] * len(raws)
    if groups:
        generations = [_generation(protocol, raw, groups, owners) for raw in raws]
    if wanted.generation is not None:
        raws = [raw for raw, number in zip(raws, generations, strict=True) if number == wanted.generation]
        generations = [wanted.generation] * len(raws)
    return Selection(protocol, raws, show(protocol, raws, owners, generations, now))


def _match(wanted: Filter, protocol: Protocol, raws: Sequence[SocketRecord]) -> list[SocketRecord]:
    """By what the kernel's record says alone."""
    tests: list[Callable[[SocketRecord], bool]] = []
    if wanted.endpoint is not None:
        tests.append(EndpointSockets(wanted.endpoint, raws).covers)
    if wanted.states:
        mask = wanted.state_mask()
        tests.append(lambda raw: bool(mask >> raw.state & 1))
    if wanted.cookies:
        cookies = frozenset(wanted.cookies)
        tests.append(lambda raw: raw.cookie in cookies)
    now = Moment.take()
    for least, known in ((wanted.idle_s, lambda raw: now.idle_s(raw.idle)), (wanted.older_than_s, now.at_least_s)):
        if least is not None:
            tests.append(_at_least(least, known))
    for passes in tests:
        raws = list(filter(passes, raws))
    return list(raws)


def _at_least(least: float, known: Callable[[SocketRecord], float | None]) -> Callable[[SocketRecord], bool]:
    def test(raw: SocketRecord) -> bool:
        value = known(raw)
        return value is not None and value >= least

    return test


@record
class _Group:
    """An attached group: where each registered listener belongs, and the inodes of the listeners."""

    endpoint: Endpoint
    place: EndpointSockets
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
            group
            for protocol in raws
            for endpoint in places.pinned(folder, wanted.endpoint or Endpoint(protocol=protocol, address=None, port=0))
            if (group := _group(folder, endpoint, raws[protocol]))
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


def _group(folder: Path, endpoint: Endpoint, raws: Sequence[SocketRecord]) -> _Group | None:
    """None where the pins are damaged: `status` says so, and the generations are unknown."""
    try:
        with State.open(places.group_folder(folder, endpoint)) as opened:
            found = {cookie: number for number, slots in opened.generations.slots().items() for _, cookie in slots}
    except Conflict:
        return None
    inodes = {raw.inode: found[raw.cookie] for raw in raws if raw.cookie in found}
    return _Group(endpoint=endpoint, place=EndpointSockets(endpoint, raws), places=found, inodes=inodes)


def _generation(protocol: Protocol, raw: SocketRecord, groups: Sequence[_Group], owners: SocketOwners) -> int | None:
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
