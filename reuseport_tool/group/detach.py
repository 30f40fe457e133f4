"""Give a group back to the kernel's own choice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, NotFound
from reuseport_tool.group import discover, journals, state
from reuseport_tool.group.attach import program_of
from reuseport_tool.group.discover import Found
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpffs, iterator, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Detached, DetachReport, Endpoint, Protocol


def detach(endpoint: Endpoint, root: Path | None, wait_s: float = 0.0) -> DetachReport:
    """Remove the program and the pins of every attached group that the endpoint means.

    `result` is detached, or cleaned where only pins were left. A reload that was killed is forgotten.

    Raises:
        NotFound: nothing of ours is attached there.
        Conflict: locked, or another program took our program's place.
        Unsupported: the kernel cannot detach (before Linux 5.3).
    """
    folder = bpffs.find(root)
    pinned = sorted({*state.pinned(folder, endpoint), *journals.groups(folder, endpoint)}, key=str)
    if not pinned:
        raise NotFound(f"nothing of this tool is attached to {endpoint}", hint="'status' lists the groups")
    results = []
    with ExitStack() as stack:
        # Loaded once, and only for a group that has listeners: to clean up pins takes neither time nor CAP_PERFMON.
        load = functools.cache(lambda: stack.enter_context(iterator.listeners_of(endpoint.protocol, ordered=False)))
        for group in pinned:
            with state.locked(folder, group, wait_s) as group_folder:
                result = _detach_group(group, group_folder, load)
                results.append(Detached(endpoint=str(group), result=result, pins=str(group_folder / "state")))
    return DetachReport(detached=tuple(results))


def detach_all(root: Path | None, wait_s: float = 0.0) -> DetachReport:
    """detach() for every group of the namespace; where there is none, the report is empty."""
    done: list[Detached] = []
    for protocol in Protocol:
        with contextlib.suppress(NotFound):
            done += detach(Endpoint(protocol=protocol, address=None, port=0), root, wait_s).detached
    return DetachReport(detached=tuple(done))


def _detach_group(group: Endpoint, folder: Place, load: Callable[[], iterator.Listeners | None]) -> str:
    found = discover.now(group)
    result = "cleaned"
    if found.members and State.exists(folder):
        infos = _infos(load)
        attached = program_of(found.cookies, infos)
        with State.open(folder) as opened:
            opened.settle_program(attached)
            ours = opened.policy().id
        if attached is not None and attached != ours:
            raise Conflict(f"{group} has a reuseport program that is not this tool's")
        if attached is not None or not infos.keys() >= set(found.cookies):
            result = "detached" if _take_off(found) else result
    state.clean(folder)
    journals.forget(folder)
    return result


def _infos(load: Callable[[], iterator.Listeners | None]) -> Mapping[int, iterator.MemberInfo]:
    """What the iterator tells; nothing where there is none or it is not permitted: to detach needs no capability."""
    with contextlib.suppress(MissingCapability):
        listeners = load()
        return {} if listeners is None else listeners.listeners()
    return {}


def _take_off(group: Found) -> bool:
    """Detach whatever runs, from every part of a group that has split. Returns whether there was a program."""
    found = False
    for member in group.members:
        with contextlib.suppress(NotFound), discover.descriptors([member]) as fds:
            sockets.detach_program(fds[member.cookie])
            found = True
    return found
