"""Take back a program of ours whose pins are lost or damaged: through its id, and the ids of its maps.

No socket option tells which program a group has. The iterator tells its id, and the kernel opens programs and maps
by their ids for CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, MissingCapability, ToolError, Unsupported
from reuseport_tool.group import attach, choice, discover, flow_maps, last_reload, layout, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.discover import PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpf, bpffs, capabilities, folders, iterator
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.program import ProgramType
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.models import Attached, AttachReport, Endpoint

_KNOWN_BY = ("choice", "members", "generations")
"""The maps that every policy uses, by whose names and shapes a program is known as ours."""


def repair(endpoint: Endpoint, root: Path | None, wait_s: float = 0.0) -> AttachReport:
    """Pin anew what runs for every group that the endpoint means. Where nothing is to mend, nothing is changed.

    Raises:
        NotFound: nothing listens there.
        Conflict: the program is not this tool's, or another user's; locked.
        MissingCapability, Unsupported: the kernel does not tell what runs.
    """
    found = discover.groups(endpoint)
    folder = bpffs.find_or_mount(root)
    results: list[Attached] = []
    with policies.ChosenPolicy(None, None) as chosen, iterator.listeners_of(endpoint.protocol) as listeners:
        if listeners is None:
            raise Unsupported("the kernel does not tell which program runs", hint="'detach' still removes it")
        for group in found:
            with attach.told_after(results), places.locked(folder, group.endpoint, wait_s) as group_folder:
                start = time.perf_counter()
                places.refuse_interrupted(group_folder, group.endpoint)
                group = discover.present(group.endpoint)
                running = attach.program_of(group.cookies, listeners.listeners(group.cookies))
                repaired = last_reload.forget_damaged(group_folder)
                repaired |= running is not None and _mend(group, group_folder, running)
                opened, result, registered = attach.attach_group(
                    group, chosen, group_folder, infos=iterator.infos_of(listeners, group.cookies)
                )
                with opened:
                    result = "repaired" if repaired else result
                    results.append(attach.report(group, opened, result, registered, time.perf_counter() - start))
    return AttachReport(attached=tuple(results))


def _mend(group: PresentGroup, folder: Place, running: int) -> bool:
    """Whether the pins had to be made anew. Raises as repair()."""
    if not is_damaged(folder, running):
        return False
    with ExitStack() as stack:
        program = _program(stack, running)
        maps = _maps(stack, program) if program is not None else None
        if program is None or maps is None:
            return False  # attach_group() says whose it is
        if program.info().uid != os.geteuid():
            raise Conflict(
                f"{folders.user(program.info().uid)} loaded the program of {group.endpoint}, "
                "and could still change its maps",
                hint="let that user repair it, or detach and attach again",
            )
        _pin(stack, folder, program, maps)
    return True


def is_damaged(folder: Place, running: int) -> bool:
    """Whether the pins in a group's folder are not, or not all, of the program that runs."""
    if not places.is_attached(folder):
        return True
    try:
        with State.open(folder) as opened:
            opened.settle_program(running)
            if opened.policy().id != running:
                return True
            opened.generations.registered()
            return opened.choice.working not in (0, *opened.generations.numbers())
    except (ToolError, OSError):
        return True


def is_ours(program_id: int) -> bool:
    """Whether a program is one of this tool: by its type and its maps. False where the kernel does not tell."""
    with ExitStack() as stack, contextlib.suppress(MissingCapability):
        program = _program(stack, program_id)
        return program is not None and _maps(stack, program) is not None
    return False


def forget_slots(program_id: int) -> None:
    """Empty all slots of a program of ours, so that its listeners can be registered anew at once."""
    with ExitStack() as stack, contextlib.suppress(MissingCapability, OSError):
        program = _program(stack, program_id)
        maps = _maps(stack, program) if program is not None else None
        for _, array in _generations(stack, maps) if maps else ():
            listeners = SockArray(array)
            for slot, _ in list(listeners.items(listeners.capacity)):
                listeners.remove(slot)


def _program(stack: ExitStack, program_id: int) -> bpf.Program | None:
    """None for a classic BPF filter, and for what is no sk_reuseport program or gone."""
    if not program_id:
        return None
    try:
        program = stack.enter_context(bpf.Program.by_id(program_id))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise _not_permitted() from error
    return program if program.info().type == ProgramType.SK_REUSEPORT else None


def _maps(stack: ExitStack, program: bpf.Program) -> dict[str, bpf.Map] | None:
    """The maps of a program of ours, by name; those that its policy does not use are missing. None for another's."""
    found: dict[str, bpf.Map] = {}
    try:
        for map_id in program.map_ids():
            entry = stack.enter_context(bpf.Map.by_id(map_id))
            if entry.name in layout.ALL_FLOW_NAMES or layout.SHAPES.get(entry.name) == layout.shape(entry):
                found[entry.name] = entry
    except PermissionError as error:
        raise _not_permitted() from error
    return found if found.keys() >= set(_KNOWN_BY) else None


def _not_permitted() -> MissingCapability:
    return MissingCapability(
        "opening a BPF program by its id is not permitted", hint=capabilities.hint("CAP_SYS_ADMIN")
    )


def _generations(stack: ExitStack, maps: dict[str, bpf.Map]) -> Iterator[tuple[int, bpf.Map]]:
    """The sockarrays that the program can choose from, with their indices in the array of maps.

    A look-up in an array of maps gives the inner map's id (kernel/bpf/map_in_map.c, bpf_map_fd_sys_lookup_elem()).
    """
    for index in range(layout.GENERATIONS):
        with contextlib.suppress(FileNotFoundError):
            map_id = int.from_bytes(maps["generations"].lookup(index), sys.byteorder)
            yield index, stack.enter_context(bpf.Map.by_id(map_id))


def _pin(stack: ExitStack, folder: Place, program: bpf.Program, maps: dict[str, bpf.Map]) -> None:
    """Pin a running program and its maps aside and put them in the place of what is there."""
    fresh = layout.new_maps(stack)
    aside, old = folder / f"next_{os.getpid()}", folder / f"gone_{os.getpid()}"
    for place in (aside, old):
        place.remove()
    aside.make()
    bpffs.pin(program, aside / "program")
    for name, entry in {**fresh, **maps}.items():
        bpffs.pin(entry, aside / name)
    flow_maps.read_answers(maps, folder, aside)
    newest = max(maps["choice"].lookup_u32(index) for index in (choice.Element.WORKING, choice.Element.CANARY))
    for index, array in _generations(stack, maps):
        bpffs.pin(array, aside / places.generation_name(number_of(index, newest)))
    with contextlib.suppress(FileNotFoundError):
        (folder / places.STATE).rename(old)
    aside.rename(folder / places.STATE)  # commit point
    old.remove()


def number_of(index: int, newest: int) -> int:
    """The number of the generation at an index of the array of maps: the latest one up to `newest` that fits.

    Generation n is at n modulo GENERATIONS, and takes the place of the one that is GENERATIONS older.
    """
    number = newest - (newest - index) % layout.GENERATIONS
    return number if number > 0 else number + layout.GENERATIONS
