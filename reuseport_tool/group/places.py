"""Where the pins of a group are, who may change them, and how they go away.

Layout on bpffs (bpffs allows no dot in a name):

    <bpffs>/reuseport-tool/<netns>/<group>/           locked with flock(2) by every verb
        state/                                        appears by one rename(2), complete, and goes by one
            program  choice  members  generations  counters  cursors
            generation_<n>                            the sockarrays, one for each living generation
            flows  flow_counters                      of a UDP group that keeps flows
            connections  quic  quic_egress            of one that keeps connections of QUIC; the last is a link
        next_<pid>/                                   being built by a run, or left by a killed one
        gone_<pid>/                                   being removed by a run, or left by a killed one
        journal                                       of a reload that runs, or was killed (journals.py)
        last_reload                                   what became of the last one (last_reload.py)

<netns> is netns.key(). Every folder is one of kernel/folders.py: ours, and closed to others.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reuseport_tool.errors import Conflict, ToolError
from reuseport_tool.kernel import bpf, bpffs, folders, netns
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.models import Endpoint, Protocol
from reuseport_tool.models.endpoint import canonical_address

STATE = "state"
JOURNAL = "journal"
LAST_RELOAD = "last_reload"
_MOMENT_S = 1.0
_AGAIN_S = 0.02
_GENERATION = re.compile(r"generation_(\d{1,10})")


def group_folder(root: Path, group: Endpoint) -> Place:
    """Where the pins of a group of the calling thread's namespace are, existing or not."""
    return namespace_folder(root) / folder_name(group)


def namespace_folder(root: Path) -> Place:
    """Where the groups of the calling thread's namespace are."""
    return Place(root) / bpffs.HOME / netns.key()


def folder_name(group: Endpoint) -> str:
    """A name without dots and colons: tcp4_10-0-0-1_80, tcp6_fe80--1_80_eth0, tcp6only_--_80."""
    address = (group.address or "").replace(".", "+" if group.is_ipv6 else "-").replace(":", "-")
    version = ("6only" if group.v6only else "6") if group.is_ipv6 else "4"
    device = "_" + group.device.replace(".", ":") if group.device else ""  # no device has a colon in its name
    return f"{group.protocol}{version}_{address}_{group.port}{device}"


def endpoint_of(folder: str) -> Endpoint | None:
    """The endpoint of a folder's name, None when the name is not one of ours."""
    match = re.fullmatch(r"(tcp|udp)(4|6|6only)_([0-9a-f+-]+)_(\d+)(?:_(.+))?", folder)
    if match is None:
        return None
    address = match[3].replace("-", "." if match[2] == "4" else ":").replace("+", ".")
    group = Endpoint(
        protocol=Protocol(match[1]),
        address=address,
        port=int(match[4]),
        device=match[5].replace(":", ".") if match[5] else None,
        v6only=match[2] == "6only",
    )
    try:
        canonical = canonical_address(address) == address and (address == "::" or not group.v6only)
    except ValueError:
        return None
    return group if canonical and folder_name(group) == folder and 1 <= group.port <= 65535 else None


def pinned(root: Path, endpoint: Endpoint) -> list[Endpoint]:
    """The groups with pins of ours, in the calling thread's namespace, that an endpoint means."""
    return endpoint.among(group for group, entry in _by_group(root).items() if is_attached(entry))


def group_folders(root: Path, endpoint: Endpoint) -> list[Place]:
    """The folders of the groups that an endpoint means, of the calling thread's namespace."""
    found = _by_group(root)
    return [found[group] for group in endpoint.among(found)]


def _by_group(root: Path) -> dict[Endpoint, Place]:
    folder = namespace_folder(root)
    return {group: folder / name for name in folder.names() if (group := endpoint_of(name))}


@contextlib.contextmanager
def locked(
    root: Path,
    group: Endpoint,
    wait_s: float = 0.0,
    *,
    at_once: bool = False,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[Place]:
    """Hold the lock of a group and yield its folder.

    A follower holds it for milliseconds at any time, so nobody but a follower (`at_once`) gives up before `_MOMENT_S`.

    Args:
        pause: called between two tries with the seconds to wait; it may raise.

    Raises:
        Conflict: another run holds it for longer than `wait_s`; the message has its pid.
    """
    deadline = time.monotonic() + (0.0 if at_once else max(wait_s, _MOMENT_S))

    def wait(_holder: int) -> bool:
        if time.monotonic() >= deadline:
            return False
        pause(_AGAIN_S)
        return True

    folder = group_folder(root, group)
    with folders.lock(folder, wait):
        yield folder


def is_interrupted(folder: Place) -> bool:
    """Whether a reload of the group, whose lock the caller holds, was killed."""
    return (folder / JOURNAL).exists()


def refuse_interrupted(folder: Place, group: Endpoint) -> None:
    """Raises Conflict when a reload of the group, whose lock the caller holds, was killed."""
    if is_interrupted(folder):
        raise Conflict(
            f"a reload of {group} was interrupted",
            hint=f"'reload {group} --resume' finishes it, '--abort' undoes it; 'status' shows where it was",
        )


def is_attached(folder: Place) -> bool:
    """Whether a group's folder has pins of ours, complete or not."""
    return (folder / STATE).exists()


def generations(folder: Place) -> list[int]:
    """The numbers of the generations that are pinned in a folder, lowest first."""
    found = (match for name in folder.names() if (match := _GENERATION.fullmatch(name)))
    return sorted(int(match[1]) for match in found if match[0] == generation_name(int(match[1])))


def generation_name(number: int) -> str:
    return f"generation_{number}"


def clean(folder: Place) -> None:
    """Remove the pins of a group and what killed runs left beside them. The caller holds the lock.

    They are renamed aside first, so that a run that is killed after that leaves no state behind.
    """
    aside = folder / f"gone_{os.getpid()}"
    _remove_leftovers(folder)
    with contextlib.suppress(FileNotFoundError):
        (folder / STATE).rename(aside)  # commit point
    _remove_leftovers(folder)


def _remove_leftovers(folder: Place) -> None:
    for name in folder.names():
        if name != STATE and not name.startswith(JOURNAL):
            empty(folder / name)
            (folder / name).remove()


def empty(folder: Place) -> None:
    """Empty the slots of the sockarrays that are pinned in a folder.

    The kernel frees a sockarray some time after its last reference is gone, and until then its sockets cannot be
    registered anew.
    """
    if not folder.is_folder():
        return
    for number in generations(folder):
        with contextlib.suppress(OSError, ToolError), bpffs.open_map(folder / generation_name(number)) as array:
            if array.type == bpf.MapType.REUSEPORT_SOCKARRAY:
                listeners = SockArray(array)
                for slot, _ in list(listeners.items(listeners.capacity)):
                    listeners.remove(slot)


def _has_listeners(folder: Place) -> bool:
    """Whether a listener of some generation is open, or that cannot be told."""
    try:
        for number in generations(folder / STATE):
            with bpffs.open_map(folder / STATE / generation_name(number)) as array:
                if any(SockArray(array).items(_slots_in_use(folder, number, array))):
                    return True
    except (OSError, ToolError):
        return True
    return False


def _slots_in_use(folder: Place, number: int, array: bpf.Map) -> int:
    """How many slots of a generation may be occupied: those that the program looks at and the next, which is filled
    before the program is told; all where that is not known. A look at each of 512 takes the kernel as many calls."""
    try:
        with bpffs.open_map(folder / STATE / "members") as members:
            in_use: int = members.lookup_u32(number % int(members.max_entries)) + 1
            return min(in_use, int(array.max_entries))
    except FileNotFoundError:
        return int(array.max_entries)


def of_gone_namespaces(root: Path) -> list[Place]:
    """The folders of groups whose network namespace is gone: nobody is in it, and no listener of theirs is open."""
    home = Place(root) / bpffs.HOME
    living = netns.keys()
    return [
        home / name / group
        for name in home.names()
        if re.fullmatch(r"\d+(_\d+)?", name) and name not in living and name.partition("_")[0] not in living
        for group in (home / name).names()
        if endpoint_of(group) and not _has_listeners(home / name / group)
    ]
