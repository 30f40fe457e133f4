"""Groups, listeners, generations and counters."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError
from reuseport_tool.group import choice, discover, flows, followed, journals, last_reload, places, problems, state
from reuseport_tool.group.discover import Member, PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpf, bpffs, netns, processes
from reuseport_tool.kernel.diag import BoundSocket
from reuseport_tool.kernel.folders import Foreign, Place
from reuseport_tool.kernel.iterator import ListenerInfo, Listeners, MemberInfo, UdpInfo, infos_of, listeners_of
from reuseport_tool.models import (
    Canary,
    Counters,
    Endpoint,
    FlowTable,
    Followed,
    GonePins,
    Group,
    LastReload,
    Listener,
    Program,
    Protocol,
    Status,
    Transaction,
)
from reuseport_tool.record import record

_HOLDERS = 256  # of a listener, from which its master is found


@record
class _Pinned:
    """What our pins say of a group."""

    program: Program
    working: int
    places: dict[int, tuple[int, int]]
    counters: Counters
    canary: Canary | None
    flows: FlowTable | None


class Observer:
    """Reads the status again and again with one iterator a protocol. A context manager.

    Where the kernel does not let it iterate (no BTF, no CAP_PERFMON), half-open counts and foreign
    programs stay unknown.
    """

    def __init__(self, endpoint: Endpoint | None, root: Path | None) -> None:
        self._endpoint = endpoint
        self._root = root
        self._loaded = contextlib.ExitStack()
        self._listeners: dict[Protocol, Listeners | None] = {}
        self._unseen: str | None = None

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.close()

    def read(self) -> Status:
        """Raises NotFound when an endpoint was given and nothing listens or is pinned there."""
        endpoints = self._discovered()
        # The dump above gave every listener its cookie, by which the iterator's records are found.
        infos: dict[int, MemberInfo] = {}
        for protocol in sorted({endpoint.protocol for endpoint in endpoints}):
            of_protocol = [entries for endpoint, entries in endpoints.items() if endpoint.protocol is protocol]
            infos |= self._infos(protocol, [entry.cookie for entries in of_protocol for entry in entries])
        groups = []
        masters = processes.Masters()
        for found in discover.with_holders(endpoints, _HOLDERS):
            group = self._group(found, infos, self._pins(found.endpoint), masters)
            left = group.program or group.stale or group.reload or group.last_reload
            if self._endpoint or left or _may_be_group(found, group):
                groups.append(group)
        if not groups and self._endpoint is not None:
            discover.groups(self._endpoint)
        return Status(groups=tuple(groups), gone=() if self._endpoint else self._gone(), unseen=self._unseen)

    def _gone(self) -> tuple[GonePins, ...]:
        try:
            left = places.of_gone_namespaces(bpffs.find(self._root))
        except (NotFound, Foreign, MissingCapability):
            return ()
        return tuple(
            GonePins(
                endpoint=str(places.endpoint_of(place.name)),
                netns=f"net:[{place.parent.name.partition('_')[0]}]",
                pins=str(place / places.STATE),
            )
            for place in left
        )

    def _infos(self, protocol: Protocol, wanted: Collection[int]) -> Mapping[int, MemberInfo]:
        if protocol not in self._listeners:
            self._listeners[protocol] = None
            with contextlib.suppress(MissingCapability):
                self._listeners[protocol] = self._loaded.enter_context(listeners_of(protocol, ordered=False))
        return infos_of(self._listeners[protocol], wanted)

    def _discovered(self) -> dict[Endpoint, list[BoundSocket]]:
        if self._endpoint is not None:
            found = discover.sockets_of(self._endpoint)
        else:
            found = {**discover.all_groups(Protocol.TCP), **discover.all_groups(Protocol.UDP)}
        for protocol in [self._endpoint.protocol] if self._endpoint else list(Protocol):
            for pinned in self._pinned(self._endpoint or Endpoint(protocol=protocol, address=None, port=0)):
                found.setdefault(pinned, discover.sockets_in(pinned))
        return {group: found[group] for group in self._endpoint.among(found)} if self._endpoint else found

    def _pinned(self, endpoint: Endpoint) -> list[Endpoint]:
        closed = bpffs.closed_to_us() if self._root is None else None
        self._unseen = closed.message if closed else None
        try:
            root = bpffs.find(self._root)
            return [
                *places.pinned(root, endpoint),
                *journals.groups(root, endpoint),
                *last_reload.groups(root, endpoint),
            ]
        except (NotFound, Foreign, MissingCapability) as error:
            if self._root is not None:
                raise
            if not isinstance(error, NotFound):
                self._unseen = self._unseen or error.message
            return []

    def _pins(self, group: Endpoint) -> _Pinned | str | None:
        """What our pins say of a group, or what is wrong with them."""
        try:
            return self._opened(places.group_folder(bpffs.find(self._root), group))
        except (NotFound, Foreign, MissingCapability):
            return None
        except (Conflict, OSError) as error:
            return f"{_message(error)}: 'attach {group} --repair' makes them anew, 'detach {group}' removes them"

    def _opened(self, folder: Place) -> _Pinned:
        with State.open(folder) as opened:
            generations = opened.generations.slots().items()
            return _Pinned(
                program=opened.policy(),
                working=opened.choice.working,
                places={cookie: (number, slot) for number, slots in generations for slot, cookie in slots},
                counters=opened.counters(),
                canary=_canary(opened),
                flows=flows.table(opened),
            )

    def _followed(self, group: Endpoint) -> Followed | None:
        try:
            return followed.read(places.group_folder(bpffs.find(self._root), group), group)
        except (NotFound, Foreign, MissingCapability):
            return None

    def _transaction(self, group: Endpoint) -> Transaction | None:
        try:
            folder = places.group_folder(bpffs.find(self._root), group)
            if not places.is_interrupted(folder):
                return None
        except (NotFound, Foreign, MissingCapability):
            return None
        entry = journals.read(folder)
        if entry is None:
            return None
        head = entry.header
        return Transaction(
            running=journals.is_running(folder),
            step=head.step,
            pid=head.pid,
            begun_at=head.begun_at,
            share_until=head.share_until,
        )

    def _last_reload(self, group: Endpoint) -> LastReload | str | None:
        """What became of the last reload, or what is wrong with the record."""
        try:
            return last_reload.read(places.group_folder(bpffs.find(self._root), group))
        except (NotFound, Foreign, MissingCapability):
            return None
        except Conflict as error:
            return f"{error.message}: 'attach {group} --repair' removes it"

    def _group(
        self,
        found: PresentGroup,
        infos: Mapping[int, MemberInfo],
        pinned: _Pinned | str | None,
        masters: processes.Masters,
    ) -> Group:
        pins = pinned if isinstance(pinned, _Pinned) else None
        known = [infos[cookie] for cookie in found.cookies if cookie in infos]
        running = [info.program_id for info in known]
        attached = next((program_id for program_id in running if program_id is not None), None)
        ours = pins is not None and (attached == pins.program.id or (not running and bool(found.members)))
        other = None if ours else _other(attached)
        last = self._last_reload(found.endpoint)
        damage = [text for text in (pinned, _lost(found.endpoint, other), last) if isinstance(text, str)]
        group = Group(
            endpoint=str(found.endpoint),
            netns=f"net:[{netns.identity()}]",
            program=pins.program if pins and ours else other,
            working_generation=(pins.working or None) if pins and ours else None,
            listeners=tuple(
                _listener(member, infos.get(member.cookie), pins if ours else None, masters) for member in found.members
            ),
            counters=pins.counters if pins and ours else None,
            stale=pins is not None and not ours and not (other and other.policy),
            damage=damage[0] if damage else None,
            canary=pins.canary if pins and ours else None,
            reload=self._transaction(found.endpoint),
            last_reload=last if isinstance(last, LastReload) else None,
            reuseport=_has_reuseport(found, infos),
            mptcp=any(member.socket.mptcp for member in found.members),
            flows=pins.flows if pins and ours else None,
            followed=self._followed(found.endpoint),
            parts=len({info.group for info in known if info.group}) or None,
        )
        return replace(group, problems=problems.of_group(group))


def _canary(opened: State) -> Canary | None:
    found = opened.choice.canary
    if found is None or found[0] == opened.choice.working:
        return None
    return Canary(generation=found[0], percent=found[1] / choice.SHARES * 100)


def _has_reuseport(found: PresentGroup, infos: Mapping[int, MemberInfo]) -> bool | None:
    """Whether the sockets have SO_REUSEPORT; None where the kernel does not tell."""
    known = [infos[cookie] for cookie in found.cookies if cookie in infos]
    return any(info.group for info in known) if known else None


def _may_be_group(found: PresentGroup, group: Group) -> bool:
    """Where the kernel does not tell, a single UDP socket is taken for a client."""
    if group.reuseport is None:
        return found.endpoint.protocol is Protocol.TCP or len(found.members) > 1
    return group.reuseport


def _other(program_id: int | None) -> Program | None:
    """A program that runs and is not the pinned one: somebody else's, or one of ours whose pins are lost."""
    if program_id is None:
        return None
    name = "(classic BPF)" if program_id == 0 else "(unknown)"
    with contextlib.suppress(OSError), bpf.Program.by_id(program_id) as program:
        name = program.info().name
    from reuseport_tool.group import repair  # only where a program is not the pinned one

    ours = bool(program_id) and repair.is_ours(program_id)
    return Program(id=program_id, name=name, policy=state.policy_name(name) if ours else None)


def _lost(group: Endpoint, other: Program | None) -> str | None:
    """What is wrong where a program of ours runs and is not the pinned one."""
    if other is None or other.policy is None:
        return None
    return (
        f"the pins of the program (id {other.id}) are lost: 'attach {group} --repair' makes them anew, "
        f"'detach {group}' takes the program off"
    )


def _message(error: ToolError | OSError) -> str:
    return error.message if isinstance(error, ToolError) else f"the pins cannot be read ({error.strerror})"


def _listener(member: Member, info: MemberInfo | None, pins: _Pinned | None, masters: processes.Masters) -> Listener:
    owner = member.owner(masters)
    generation, slot = pins.places.get(member.cookie, (None, None)) if pins else (None, None)
    return Listener(
        cookie=member.cookie,
        pid=owner,
        command=processes.command(owner) if owner is not None else None,
        uid=member.socket.uid,
        generation=generation,
        slot=slot,
        accept_queue=member.socket.accept_queue,
        backlog=member.socket.backlog,
        half_open=info.half_open if isinstance(info, ListenerInfo) else None,
        flag=_flag(pins, generation),
        receive_queue=info.receive_queue if isinstance(info, UdpInfo) else None,
        drops=info.drops if isinstance(info, UdpInfo) else None,
    )


def _flag(pins: _Pinned | None, generation: int | None) -> str:
    if pins is None:
        return "-"
    if generation is None:
        return "foreign"
    if generation == pins.working:
        return "working"
    return "canary" if pins.canary and generation == pins.canary.generation else "old"
