"""Give a group back to the kernel's own choice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound, ToolError
from reuseport_tool.group import discover, journals, last_reload, places, repair
from reuseport_tool.group.attach import program_of
from reuseport_tool.group.discover import PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, folders, iterator, sockets
from reuseport_tool.kernel.folders import Foreign, Place
from reuseport_tool.models import Detached, DetachReport, Endpoint, Protocol

Load = Callable[[], iterator.Listeners | None]
"""Loads the iterator, once."""


def detach(endpoint: Endpoint, root: Path | None, wait_s: float = 0.0) -> DetachReport:
    """Remove the program and the pins of every group that the endpoint means, also where pins are lost or damaged.

    `result` is detached, or cleaned where only pins were left. A reload that was killed is forgotten. A group that
    cannot be detached does not keep the others.

    Raises:
        NotFound: nothing of ours is attached there.
        Conflict: locked, or another program took our program's place.
        Unsupported: the kernel cannot detach (before Linux 5.3).
    """
    results: list[Detached] = []
    failures: list[ToolError] = []
    with ExitStack() as stack:
        # Loaded once, and only for a group that has listeners: to clean up pins takes neither time nor CAP_PERFMON.
        load = functools.cache(lambda: stack.enter_context(iterator.listeners_of(endpoint.protocol, ordered=False)))
        found = _groups(endpoint, root, load)
        if not found:
            raise NotFound(f"nothing of this tool is attached to {endpoint}", hint="'status' lists the groups")
        folder = bpffs.find_or_mount(root)
        for group in found:
            try:
                with places.locked(folder, group, wait_s) as group_folder:
                    result = _detach_group(group, group_folder, load)
                    place = str(group_folder / places.STATE)
                results.append(Detached(endpoint=str(group), result=result, pins=place))
            except ToolError as error:
                failures.append(error)
    if failures:
        if results:
            failures[0].after(
                DetachReport(detached=tuple(results)),
                ", ".join(f"{entry.endpoint} {entry.result}" for entry in results),
            )
        raise failures[0]
    return DetachReport(detached=tuple(results))


def _groups(endpoint: Endpoint, root: Path | None, load: Load) -> list[Endpoint]:
    """Those with pins of ours, and those that run a program of ours whose pins are lost."""
    found: set[Endpoint] = set()
    try:
        folder = bpffs.find(root)
        found = {
            *places.pinned(folder, endpoint),
            *journals.groups(folder, endpoint),
            *last_reload.groups(folder, endpoint),
        }
    except (NotFound, Foreign):
        if root is not None:
            raise
    present = discover.sockets_of(endpoint)
    others = [group for group in endpoint.among(present) if group not in found]
    infos = _infos(load, {entry.cookie for group in others for entry in present[group]}) if others else {}
    for group in others:
        running = program_of([entry.cookie for entry in present[group]], infos)
        if running is not None and repair.is_ours(running):
            found.add(group)
    return sorted(found, key=str)


def detach_all(root: Path | None, wait_s: float = 0.0) -> DetachReport:
    """detach() for every group of the namespace; where there is none, the report is empty."""
    done: list[Detached] = []
    for protocol in Protocol:
        with contextlib.suppress(NotFound):
            done += detach(Endpoint(protocol=protocol, address=None, port=0), root, wait_s).detached
    return DetachReport(detached=tuple(done))


def detach_gone(root: Path | None, wait_s: float = 0.0) -> DetachReport:
    """Remove the pins of network namespaces that are gone; where there are none, the report is empty."""
    done = []
    for folder in places.of_gone_namespaces(bpffs.find(root)):
        with folders.lock(folder, lambda _holder: False):
            places.clean(folder)
            journals.forget(folder)
        group = places.endpoint_of(folder.name)
        done.append(Detached(endpoint=str(group), result="gone", pins=str(folder / places.STATE)))
    return DetachReport(detached=tuple(done))


def _detach_group(group: Endpoint, folder: Place, load: Load) -> str:
    found = discover.now(group)
    result = "cleaned"
    if found.members:
        infos = _infos(load, found.cookies)
        running = program_of(found.cookies, infos)
        unseen = not infos.keys() >= set(found.cookies)
        if running is not None and running != _pinned_program(folder, running):
            if not repair.is_ours(running):
                raise Conflict(
                    f"{group} has a reuseport program that is not this tool's",
                    hint="'status' shows it; it ends with the sockets, or by what attached it",
                )
            repair.forget_slots(running)
        if running is not None or (unseen and places.is_attached(folder)):
            result = "detached" if take_off(found) else result
    places.clean(folder)
    journals.forget(folder)
    return result


def _pinned_program(folder: Place, running: int) -> int | None:
    """The id of the program in the pins, None where they are lost or damaged."""
    try:
        with State.open(folder) as opened:
            opened.settle_program(running)
            return opened.policy().id
    except ToolError:
        return None


def _infos(load: Load, wanted: Collection[int]) -> Mapping[int, iterator.MemberInfo]:
    """What the iterator tells; nothing where there is none or it is not permitted: to detach needs no capability."""
    with contextlib.suppress(MissingCapability):
        return iterator.infos_of(load(), wanted)
    return {}


def take_off(group: PresentGroup) -> bool:
    """Detach whatever runs, from every part of a group that has split. Returns whether there was a program."""
    found = False
    for member in group.members:
        with contextlib.suppress(NotFound), discover.descriptors([member]) as fds:
            sockets.detach_program(fds[member.cookie])
            found = True
    return found
