"""Attach our program to a group and register its listeners."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.errors import Conflict, ToolError, UsageError
from reuseport_tool.group import discover, layout, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.discover import Member, PresentGroup
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpf, bpffs, iterator, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Attached, AttachReport, Endpoint, Policy, Protocol


def attach(
    endpoint: Endpoint,
    policy: Policy | None,
    source: Path | None,
    root: Path | None,
    wait_s: float = 0.0,
    flows: policies.FlowChoice | None = None,
) -> AttachReport:
    """Attach to every group that the endpoint means.

    Args:
        policy, source: a policy of ours, or the C file of one's own; neither keeps what is attached, and
            means `hash` where nothing is.
        root: bpffs folder, None for the usual one.
        wait_s: how long to wait for another run's lock, seconds.
        flows: None keeps what is attached, and means none where nothing is.

    Raises:
        UsageError: flows of TCP.
        NotFound: nothing listens there.
        Conflict: a foreign program is attached, or the group is locked.
        ToolError: a listener without SO_REUSEPORT.
        ProgramRejected, MissingCapability, Unsupported: from loading.
    """
    _check(endpoint, source, flows)
    found = discover.groups(endpoint)
    folder = bpffs.find_or_mount(root)
    results: list[Attached] = []
    with (
        policies.ChosenPolicy(policy, source, flows) as chosen,
        iterator.listeners_of(endpoint.protocol) as listeners,
        _locked(folder, [group.endpoint for group in found], wait_s) as locked,
    ):
        # As they are now, by one look: who held a lock before us may have replaced its group.
        present = discover.all_present(endpoint, list(locked))
        infos = iterator.infos_of(listeners, {cookie for group in present for cookie in group.cookies})
        for group in present:
            with told_after(results):
                results.append(_attach_present(group, chosen, locked[group.endpoint], infos))
    return AttachReport(attached=tuple(results))


def _attach_present(
    group: PresentGroup, chosen: policies.ChosenPolicy, folder: Place, infos: Mapping[int, iterator.MemberInfo]
) -> Attached:
    start = time.perf_counter()
    opened, result, registered = attach_group(group, chosen, folder, infos=infos)
    with opened:
        return report(group, opened, result, registered, time.perf_counter() - start)


def _check(endpoint: Endpoint, source: Path | None, flows: policies.FlowChoice | None) -> None:
    policies.check_source(source)
    if flows is not None and endpoint.protocol is not Protocol.UDP:
        raise UsageError(
            "--flows is for UDP; a TCP connection always stays with its socket",
            hint="leave --flows out, or write udp://…",
        )


@contextlib.contextmanager
def _locked(folder: Path, groups: Sequence[Endpoint], wait_s: float) -> Iterator[dict[Endpoint, Place]]:
    """The folders of all groups, locked. In one order, so that two runs do not wait for each other."""
    with ExitStack() as stack:
        folders: dict[Endpoint, Place] = {}
        for group in sorted(groups, key=str):
            folders[group] = stack.enter_context(places.locked(folder, group, wait_s))
            places.refuse_interrupted(folders[group], group)
        yield folders


@contextlib.contextmanager
def told_after(results: list[Attached]) -> Iterator[None]:
    """An error inside says what had been attached before it."""
    try:
        yield
    except ToolError as error:
        if results:
            done = ", ".join(f"{entry.endpoint} {entry.result}" for entry in results)
            error.after(AttachReport(attached=tuple(results)), done)
        raise


def report(group: PresentGroup, opened: State, result: str, registered: list[int], duration_s: float) -> Attached:
    return Attached(
        endpoint=str(group.endpoint),
        result=result,
        program=opened.policy(),
        generation=opened.choice.working,
        registered=tuple(registered),
        pins=str(opened.folder / "state"),
        duration_s=round(duration_s, 4),
    )


def attach_group(
    group: PresentGroup,
    chosen: policies.ChosenPolicy,
    folder: Place,
    *,
    infos: Mapping[int, iterator.MemberInfo],
    belongs: Callable[[State, int], bool] = lambda _opened, _cookie: True,
    renew: bool = True,
) -> tuple[State, str, list[int]]:
    """Attach to one group whose lock the caller holds.

    Args:
        infos: what the kernel keeps of the sockets, now; empty where it does not tell.
        belongs: whether a listener is to be registered, where something is attached already.
        renew: make a new generation when all listeners of the working one have closed. It takes milliseconds (RCU).

    Returns the open state, what was done (attached, replaced, unchanged), and the cookies of the
    listeners that were newly registered.
    """
    with discover.descriptors(group.members) as fds:
        discover.require_reuseport(fds, group.endpoint)
        attached = program_of(group.cookies, infos)
        unseen = not infos.keys() >= set(group.cookies)
        opened = _opened(folder, attached is None and not unseen)
        if opened is not None:
            opened.settle_program(attached)
            if attached in (None, opened.policy().id):
                with ExitStack() as on_failure:
                    on_failure.enter_context(opened)
                    result = _reattach(opened, attached, chosen, fds, infos)
                    mine = {cookie: fd for cookie, fd in fds.items() if belongs(opened, cookie)}
                    registered = _register(opened, _in_order(mine, infos), renew)
                    on_failure.pop_all()
                return opened, result, registered
            opened.close()
        if attached is not None:
            raise _other_program(group.endpoint, attached)
        return _attach_new(chosen, _in_order(fds, infos), infos, folder)


def _opened(folder: Place, nothing_runs: bool) -> State | None:
    """The state in a folder, None where there is none. Damaged pins of a program that does not run are no state."""
    if not State.exists(folder):
        return None
    try:
        return State.open(folder)
    except Conflict:
        if nothing_runs:
            return None
        raise


def _other_program(group: Endpoint, program_id: int) -> Conflict:
    from reuseport_tool.group import repair

    if repair.is_ours(program_id):
        return Conflict(
            f"{group} runs a program of this tool (id {program_id}) whose pins are not in this bpffs",
            hint=f"'attach {group} --repair' restores them, 'detach {group}' removes the program",
        )
    return Conflict(
        f"{group} has a reuseport program that is not this tool's: {_describe(program_id)}",
        hint="detach it with the tool that attached it",
    )


def program_of(cookies: Collection[int], infos: Mapping[int, iterator.MemberInfo]) -> int | None:
    """Id of the program that runs for the group with these listeners; 0 for a classic BPF filter, None for none.

    Only the kernel's own structures tell, by an iterator. Without it (listeners_of()) the answer is what our
    pins say: None.
    """
    found = [infos[cookie].program_id for cookie in cookies if cookie in infos]
    return next((program_id for program_id in found if program_id is not None), None)


def one_of_each(fds: dict[int, int], infos: Mapping[int, iterator.MemberInfo]) -> list[int]:
    """A listener of each part of the group, by which a program gets to the whole part.

    connect(2) takes a UDP socket that is bound to a specific address out of the hash table in which a new
    socket looks for its group (udp_lib_hash4(), Linux 6.13), and so splits the group.
    """
    parts: dict[int | None, int] = {}
    for cookie, fd in fds.items():
        parts.setdefault(infos[cookie].group if cookie in infos else None, fd)
    return list(parts.values())


def _in_order(fds: dict[int, int], infos: Mapping[int, iterator.MemberInfo]) -> dict[int, int]:
    return {cookie: fds[cookie] for cookie in sorted(fds, key=lambda cookie: _place(cookie, infos))}


def in_order(members: Collection[Member], infos: Mapping[int, iterator.MemberInfo]) -> list[Member]:
    """Listeners in the order of socks[], in which the kernel counts them; as they are where it does not tell."""
    return sorted(members, key=lambda member: _place(member.cookie, infos))


def _place(cookie: int, infos: Mapping[int, iterator.MemberInfo]) -> int:
    index = infos[cookie].index if cookie in infos else None
    return sys.maxsize if index is None else index


def _describe(program_id: int) -> str:
    if not program_id:
        return "a classic BPF filter"
    try:
        with bpf.Program.by_id(program_id) as foreign:
            return f"id {program_id}, name {foreign.info().name!r}"
    except OSError:
        return f"id {program_id}"


def _attach_new(
    chosen: policies.ChosenPolicy, fds: dict[int, int], infos: Mapping[int, iterator.MemberInfo], folder: Place
) -> tuple[State, str, list[int]]:
    with ExitStack() as stack:
        maps, loaded = chosen.fresh(stack)
        stack.callback(places.clean, folder)
        opened = State.create(folder, maps, loaded)
        opened.generations.create(1, max(len(fds), *(infos[cookie].group_size for cookie in fds if cookie in infos), 0))
        registered = _mirror(opened, 1, fds, infos)
        opened.choice.switch(1)
        # Commit point: from here the program decides for the group.
        for fd in one_of_each(fds, infos):
            sockets.attach_program(fd, loaded)
        stack.pop_all()
        return opened, "attached", registered


def _reattach(
    opened: State,
    attached: int | None,
    chosen: policies.ChosenPolicy,
    fds: dict[int, int],
    infos: Mapping[int, iterator.MemberInfo],
) -> str:
    """Bring an existing state up to date: another policy, or a group, or a part of it, that came after its pins."""
    bare = {cookie: fd for cookie, fd in fds.items() if cookie not in infos or infos[cookie].program_id is None}
    present = opened.policy().policy
    if chosen.keeps(present, opened.flows.mode):
        for fd in one_of_each(bare, infos):
            sockets.attach_program(fd, opened.program)
        # What the kernel does not tell of was attached before, as far as our pins say.
        return "attached" if bare.keys() & infos.keys() else "unchanged"
    if chosen.changes_flows(opened.flows.mode):
        return _change_flows(opened, attached, chosen.following(present or ""), one_of_each(fds, infos))
    with chosen.load(opened.link()) as replacement:
        if attached is not None and replacement.info().tag == opened.program.info().tag:
            return "unchanged"
        _replace(opened, replacement, one_of_each(fds, infos))
    return "replaced" if attached is not None else "attached"


def _change_flows(opened: State, attached: int | None, chosen: policies.ChosenPolicy, fds: list[int]) -> str:
    """The maps of flows are there before the program that uses them, and go after it."""
    opened.flows.add(chosen.flow_mode, chosen.flow_entries)
    wanted = (*layout.MAPS, *layout.FLOW_MAPS[chosen.flow_mode])
    with chosen.load({name: fd for name, fd in opened.link().items() if name in wanted}) as replacement:
        _replace(opened, replacement, fds)
    opened.flows.remove(chosen.flow_mode)
    return "replaced" if attached is not None else "attached"


def _replace(opened: State, replacement: bpf.Program, fds: list[int]) -> None:
    first, *others = fds
    opened.replace_program(replacement, first)
    for fd in others:
        sockets.attach_program(fd, opened.program)


def _register(opened: State, fds: dict[int, int], renew: bool) -> list[int]:
    """Put the listeners that are in no generation yet into the working one."""
    known = opened.generations.registered()
    new = {cookie: fd for cookie, fd in fds.items() if cookie not in known}
    if not new:
        return []
    generations = opened.generations
    exists = opened.choice.working in generations.numbers()
    if not generations.working.has_listeners() and (renew or not exists):
        number = generations.next()
        generations.create(number, len(new))
        registered = _fill(opened, number, new)
        opened.choice.switch(number)
        return registered
    return _fill(opened, opened.choice.working, new)


def _mirror(opened: State, generation: int, fds: dict[int, int], infos: Mapping[int, iterator.MemberInfo]) -> list[int]:
    """Fill an empty generation so that slot i is socks[i], and no flow of the policy `hash` moves.

    Connected UDP sockets stay in socks[] and fit into no slot: theirs are empty, and the next one gets
    their share, as in the kernel's own choice.
    """
    places = [infos[cookie].index if cookie in infos else None for cookie in fds]
    if len({infos[cookie].group for cookie in fds if cookie in infos}) != 1 or None in places:
        return _fill(opened, generation, fds)
    for (_, fd), place in zip(fds.items(), places, strict=True):
        opened.generations[generation].add(fd, place)
    opened.generations[generation].widen(max(infos[cookie].group_size for cookie in fds))
    return list(fds)


def _fill(opened: State, generation: int, fds: dict[int, int]) -> list[int]:
    opened.generations[generation].add_all(fds.values())
    return list(fds)
