"""The REUSEPORT_SOCKARRAY maps of a group, by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from reuseport_tool.errors import Conflict, NotFound, ToolError, UsageError
from reuseport_tool.group import discover, places
from reuseport_tool.group.discover import Member, PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, processes
from reuseport_tool.models import Endpoint, GenerationMap, MapChange, MapChanges, Maps, Protocol, Slot


def list_maps(endpoint: Endpoint | None, root: Path | None) -> Maps:
    """The maps of every attached group of the namespace, or of those that the endpoint means.

    Raises:
        NotFound: an endpoint was given and nothing of ours is attached there.
    """
    folder = bpffs.find(root)
    wanted = [endpoint] if endpoint else [Endpoint(protocol=protocol, address=None, port=0) for protocol in Protocol]
    groups = [group for one in wanted for group in places.pinned(folder, one)]
    if endpoint is not None and not groups:
        raise _not_attached(endpoint)
    found: list[GenerationMap] = []
    damaged: list[ToolError] = []
    for group in groups:
        try:
            with State.open(places.group_folder(folder, group)) as opened:
                found += [_describe(group, opened, number) for number in opened.generations.numbers()]
        except Conflict as error:
            damaged.append(error)
    if damaged and endpoint is not None and not found:
        raise damaged[0]
    return Maps(maps=tuple(found), damaged=tuple(error.message for error in damaged))


def _describe(group: Endpoint, opened: State, generation: int) -> GenerationMap:
    described = opened.generations[generation]
    with described.sockarray() as array:
        slots = tuple(Slot(slot=slot, cookie=cookie) for slot, cookie in array.items(described.members))
        return GenerationMap(
            endpoint=str(group),
            generation=generation,
            working=generation == opened.choice.working,
            members=described.members,
            capacity=array.capacity,
            slots=slots,
        )


def add(
    endpoint: Endpoint,
    root: Path | None,
    *,
    generation: int | None,
    slot: int | None,
    pid: int | None,
    cookie: int | None,
) -> MapChanges:
    """Register listeners of the group: those of a process, the one with a cookie, or all unregistered.

    A generation that does not exist is made. None for `generation` is the working one.

    Raises:
        NotFound: no such process, or it has no listener in this group; no such cookie.
        Conflict: the slot is taken, or the socket is registered already.
        UsageError: no such slot, or a slot for several listeners.
    """
    with _attached(endpoint, root) as (group, opened):
        members = _chosen(group, opened, pid, cookie)
        if slot is not None and len(members) != 1:
            raise UsageError(f"one slot, but {len(members)} listeners", hint="choose one with --cookie")
        number = opened.choice.working if generation is None else generation
        if number not in opened.generations.numbers():
            if number < 1:
                raise UsageError(f"not a generation: {number}", hint="generations are numbered from 1")
            opened.generations.create(number, len(members))
        with discover.descriptors(members) as fds:
            added = [
                MapChange(
                    endpoint=str(group.endpoint),
                    change="added",
                    generation=number,
                    slot=opened.generations[number].add(fd, slot),
                    cookie=cookie,
                )
                for cookie, fd in fds.items()
            ]
    return MapChanges(changes=tuple(added))


def _chosen(group: PresentGroup, opened: State, pid: int | None, cookie: int | None) -> list[Member]:
    if cookie is not None:
        members = [member for member in group.members if member.cookie == cookie]
        if not members:
            raise NotFound(f"no listener with cookie {cookie} on {group.endpoint}", hint="'status' shows the cookies")
        return members
    if pid is not None:
        if processes.command(pid) is None:
            raise processes.no_such(pid)
        members = [member for member in group.members if any(holder.pid == pid for holder in member.holders)]
        if not members:
            raise NotFound(
                f"process {pid} has no socket on {group.endpoint}",
                hint="a map takes the sockets of its own group only: same protocol, address and port",
            )
        return members
    known = opened.generations.registered()
    members = [member for member in group.members if member.cookie not in known]
    if not members:
        raise NotFound(
            f"every listener on {group.endpoint} is registered already", hint="'status' shows in which generation"
        )
    return members


def remove(endpoint: Endpoint, root: Path | None, *, generation: int, slot: int) -> MapChanges:
    """Empty a slot. Raises NotFound when it is empty, UsageError when there is no such slot."""
    with _attached(endpoint, root) as (group, opened):
        cookie = dict(opened.generations[generation].slots()).get(slot)
        opened.generations[generation].empty(slot)
        return MapChanges(
            changes=(
                MapChange(
                    endpoint=str(group.endpoint), change="removed", generation=generation, slot=slot, cookie=cookie
                ),
            )
        )


def switch(endpoint: Endpoint, root: Path | None, *, generation: int, force: bool) -> MapChanges:
    """Make a generation the working one.

    Raises:
        NotFound: no such generation.
        Conflict: it has no open listener, and `force` is not given.
    """
    with _attached(endpoint, root) as (group, opened):
        if generation not in opened.generations.numbers():
            raise NotFound(
                f"no generation {generation} on {group.endpoint}",
                hint=f"there are: {', '.join(map(str, opened.generations.numbers()))}",
            )
        if not opened.generations[generation].slots() and not force:
            raise Conflict(
                f"generation {generation} has no open listener",
                hint="the kernel would choose among all listeners; --force switches anyway",
            )
        opened.choice.switch(generation)
        return MapChanges(changes=(MapChange(endpoint=str(group.endpoint), change="switched", generation=generation),))


@contextlib.contextmanager
def _attached(endpoint: Endpoint, root: Path | None) -> Iterator[tuple[PresentGroup, State]]:
    """The one attached group that the endpoint means, locked and open."""
    folder = bpffs.find(root)
    groups = places.pinned(folder, endpoint)
    if not groups:
        raise _not_attached(endpoint)
    if len(groups) > 1:
        raise UsageError(
            f"{endpoint} means several groups: {', '.join(map(str, groups))}", hint="also write the address"
        )
    with places.locked(folder, groups[0]) as group_folder, State.open(group_folder) as opened:
        places.refuse_interrupted(group_folder, groups[0])
        found = discover.now(groups[0])
        if not found.members:
            raise NotFound(f"nothing listens on {groups[0]}", hint="'detach' removes the pins that are left")
        yield found, opened


def _not_attached(endpoint: Endpoint) -> ToolError:
    return NotFound(f"nothing of this tool is attached to {endpoint}", hint=f"attach first: attach {endpoint.port}")
