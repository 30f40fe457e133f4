"""Attach AutoLOWAT to a cgroup, take it away again, and say what it has done.

Layout on bpffs:

    <bpffs>/reuseport-tool/autolowat/<cgroup inode>/    locked with flock(2)
        state/                                          appears by one rename(2), complete
            sockets  settings  counters  ports  about
            link_<program>                              what holds the programs at the cgroup
        next_<pid>/                                     being built by a run, or left by a killed one

The programs do nothing until the setting `working`, which is the commit point of attach, and the first thing that
detach takes back. Links and maps go together, so that nothing is left half.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from reuseport_tool.autolowat import framing
from reuseport_tool.errors import Conflict, NotFound, Unsupported, UsageError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import bpffs, cgroup, folders, netns
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import (
    Autolowat,
    AutolowatAttachment,
    AutolowatDetached,
    AutolowatStatus,
    Engine,
    Role,
)

_ROLES = {Role.RECEIVER: 1, Role.SENDER: 2, Role.BOTH: 3}  # enum role of bpf/autolowat/paired.c
_PORTS_MAX = 256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an attachment is made of; kept with it as JSON."""

    engine: str
    framing: str
    ports: tuple[int, ...]
    role: str


def choose_engine(wanted: Engine | None) -> Engine:
    """The engine to use: native where the kernel has it, unless another one is wanted."""
    if wanted is not None:
        return wanted
    return Engine.PAIRED if kernel.missing_for_native() else Engine.NATIVE


def attach(
    folder: Path, spec: str, ports: Sequence[int], engine: Engine | None, role: Role, root: Path | None
) -> AutolowatAttachment:
    """Follow the frames of connections that are made in a cgroup from now on.

    Raises:
        UsageError: the framing or the ports make no sense.
        NotFound: not a cgroup.
        Conflict: something else is attached to it, to one above or to one below.
        Unsupported: the kernel has not what the engine takes.
    """
    framing.parse(spec)
    if len(ports) > _PORTS_MAX:
        raise UsageError(f"{len(ports)} ports are too many", hint=f"there is room for {_PORTS_MAX}")
    plan = Plan(engine=choose_engine(engine), framing=spec, ports=tuple(sorted(set(ports))), role=role)
    with ExitStack() as stack:
        fd = cgroup.open_folder(folder)
        stack.callback(os.close, fd)
        group, base = os.fstat(fd).st_ino, _base(bpffs.find_or_mount(root))
        _refuse_relatives(base, folder.resolve(), group)
        pins = base / str(group)
        stack.enter_context(folders.lock(pins, lambda _holder: False))
        result = "unchanged" if _resume(pins, plan, group) else "attached"
        if result == "attached":
            _attach_new(pins, plan, fd, group)
        return AutolowatAttachment(
            cgroup=str(folder), engine=plan.engine, framing=spec, ports=plan.ports, role=role, result=result
        )


def _base(root: Path) -> Place:
    return Place(root) / bpffs.HOME / "autolowat"


def _attached(base: Place) -> list[int]:
    """The cgroups, by inode, that have a complete attachment."""
    names = filter(str.isdecimal, base.names())
    return sorted(int(name) for name in names if (base / name / "state").is_folder())


def _refuse_relatives(base: Place, folder: Path, group: int) -> None:
    """Two programs would set the mark of one socket."""
    for other in _attached(base):
        path = cgroup.by_id(other) if other != group else None
        if path is not None and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise Conflict(
                f"AutoLOWAT is attached to {path}, which {folder} shares sockets with",
                hint=f"detach it first: autolowat detach --cgroup {path}",
            )


def _resume(pins: Place, plan: Plan, group: int) -> bool:
    """Whether the plan is attached already; one that was cut off before its commit point is committed."""
    with suppress(FileNotFoundError), ExitStack() as stack:
        maps = kernel.Maps.open(stack, pins / "state")
        if _plan(maps) != plan:
            raise Conflict("AutoLOWAT is attached to this cgroup in another way", hint="run 'autolowat detach' first")
        if not maps.is_working():
            _commit(maps, plan, group)
        return True
    _clean(pins)
    return False


def _plan(maps: kernel.Maps) -> Plan:
    kept = json.loads(maps.text())
    return Plan(engine=kept["engine"], framing=kept["framing"], ports=tuple(kept["ports"]), role=kept["role"])


def _attach_new(pins: Place, plan: Plan, cgroup_fd: int, group: int) -> None:
    aside = pins / f"next_{os.getpid()}"
    with ExitStack() as stack:
        maps = kernel.Maps.create(stack, plan.ports, json.dumps(asdict(plan)))
        programs = kernel.load(Engine(plan.engine), maps, defines(plan))
        for program in programs.values():
            stack.callback(program.close)
        aside.make()
        stack.push(lambda kind, *_: _clean(pins) if kind else None)
        for name, entry in maps.by_name().items():
            bpffs.pin(entry, aside / name)
        for name, link in kernel.attach(Engine(plan.engine), programs, cgroup_fd).items():
            stack.callback(link.close)
            bpffs.pin(link, aside / f"link_{name}")
        aside.rename(pins / "state")
        _commit(maps, plan, group)


def defines(plan: Plan) -> dict[str, int]:
    """What an engine is compiled with for a plan."""
    chosen = framing.parse(plan.framing)
    return {
        **chosen.defines(),
        "ROLE": _ROLES[Role(plan.role)],
        "ARM_PORTS": int(bool(plan.ports)),
        "ARM_ACTIVE": int(not chosen.accepted_only),
    }


def _commit(maps: kernel.Maps, plan: Plan, group: int) -> None:
    maps.set_working(True)  # commit point: new connections are followed
    # Listeners that are there already answer the option, too.
    _walk_everywhere(maps, Engine(plan.engine), group, listeners=True)


def _walk_everywhere(
    maps: kernel.Maps, engine: Engine, group: int, *, listeners: bool = False
) -> list[kernel.Followed]:
    """Walk over the sockets of every network namespace that can be reached."""
    found: list[kernel.Followed] = []
    with kernel.Walk(engine, maps, group, listeners) as walk:
        for path in netns.reachable():
            with suppress(NotFound), netns.visit(path):
                found += walk.read()
    return found


def _clean(pins: Place) -> None:
    for name in pins.names():
        (pins / name).remove()


def detach(folder: Path, root: Path | None) -> AutolowatDetached:
    """Give every socket SO_RCVLOWAT 1 and take the programs away. Traffic may go on.

    Raises:
        NotFound: nothing is attached to this cgroup.
        Unsupported: the kernel has no iterator that may set socket options.
    """
    base = _base(bpffs.find(root))
    pins = base / str(_identity(folder))
    with folders.lock(pins, lambda _holder: False), ExitStack() as stack:
        try:
            maps = kernel.Maps.open(stack, pins / "state")
        except FileNotFoundError:
            _clean(pins)
            raise NotFound(f"AutoLOWAT is not attached to {folder}", hint="'autolowat status' lists where") from None
        maps.set_working(False)
        # A program that was running when this was set had its socket locked, and the walk locks each.
        found = _walk_everywhere(maps, Engine(_plan(maps).engine), int(pins.name))
        if _following(found):
            raise Unsupported(
                f"this kernel does not let {_following(found)} sockets be given SO_RCVLOWAT 1 by an iterator",
                hint="the programs stay attached until these connections end: they give up with the next segment",
            )
        _clean(pins)
        return AutolowatDetached(cgroup=str(folder), sockets=len(found))


def _identity(folder: Path) -> int:
    """The inode of a cgroup; also by its number, which `status` shows for one that was removed."""
    if folder.name.isdigit() and not folder.exists():
        return int(folder.name)
    fd = cgroup.open_folder(folder)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def status(root: Path | None) -> AutolowatStatus:
    """What is attached, and what it has done."""
    try:
        base = _base(bpffs.find(root))
    except NotFound:
        if root is not None:
            raise
        return AutolowatStatus(attachments=())
    found = []
    for group in _attached(base):
        with suppress(FileNotFoundError):  # detached meanwhile
            found.append(_describe(base / str(group), group))
    return AutolowatStatus(attachments=tuple(found))


def _describe(pins: Place, group: int) -> Autolowat:
    with ExitStack() as stack:
        maps = kernel.Maps.open(stack, pins / "state")
        plan = _plan(maps)
        # While it is not working a walk would change sockets.
        found = _walk_everywhere(maps, Engine(plan.engine), group) if maps.is_working() else []
        return Autolowat(
            cgroup=str(cgroup.by_id(group) or group),
            engine=plan.engine,
            framing=plan.framing,
            ports=plan.ports,
            role=plan.role,
            working=maps.is_working(),
            sockets=len(found),
            following=_following(found),
            agreed=maps.count(kernel.AGREED) if plan.engine == Engine.PAIRED else None,
            opted_in=maps.count(kernel.OPTED_IN),
            frames=maps.count(kernel.FRAMES),
            wakeups_saved=maps.count(kernel.SAVED),
            fail_opens=maps.fail_opens(),
        )


def _following(found: Iterable[kernel.Followed]) -> int:
    return sum(1 for entry in found if entry.armed)
