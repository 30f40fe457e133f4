"""Attach AutoLOWAT to a cgroup, take it away again, and say what it has done.

Layout on bpffs:

    <bpffs>/reuseport-tool/autolowat/<cgroup inode>/    locked with flock(2)
        state/                                          appears by one rename(2), complete
            sockets  settings  counters  ports  about
            link_<program>                              what holds the programs at the cgroup
            tcx_<device index>                          solo: what holds a program at a device's ingress
        next_<pid>/                                     being built by a run, or left by a killed one
        gone_<pid>/                                     being removed

Without tcx the kernel itself holds the program at a device, as a filter with a label of ours. `about` says so before
the first filter or qdisc is made, so that whoever cleans up after a killed run knows where to look.

The programs do nothing until the setting `working`, which is the commit point of attach, and the first thing that
detach takes back. Links and maps go together, so that nothing is left half.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from reuseport_tool import record_json
from reuseport_tool.autolowat import framing
from reuseport_tool.errors import Conflict, NotFound, Unsupported, UsageError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.kernel import bpf, bpffs, cgroup, folders, netns, tc
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Autolowat, AutolowatAttachment, AutolowatDetached, AutolowatStatus, Engine
from reuseport_tool.record import record
from reuseport_tool.waiting import wait_until

_PORTS_MAX = 2048
# Marks go down with the next segment where an iterator cannot lower them.
_GIVEN_UP_S = 2.0


@record
class AttachmentPlan:
    """What an attachment is made of."""

    engine: Engine
    framing: str
    ports: tuple[int, ...]


@record
class About:
    """What the next run must know of an attachment; kept with it.

    Attributes:
        namespace: the inode of the network namespace whose devices have the program of `solo`.
        filters: it may be there as filters, not as links.
        qdiscs: the devices, by index, at which clsact was ours to make.
    """

    plan: AttachmentPlan
    namespace: int
    filters: bool = False
    qdiscs: tuple[int, ...] = ()


def choose_engine(wanted: Engine | None) -> Engine:
    """The engine to use: native where the kernel has it, unless another one is wanted."""
    if wanted is not None:
        return wanted
    return Engine.SOLO if kernel.missing_for_native() else Engine.NATIVE


def attach(
    folder: Path, spec: str, ports: Sequence[int], engine: Engine | None, root: Path | None
) -> AutolowatAttachment:
    """Follow the frames of connections that are made in a cgroup from now on.

    Raises:
        UsageError: the framing or the ports make no sense.
        NotFound: not a cgroup.
        Conflict: something else is attached to it, to one above or to one below; or its processes are in several
            network namespaces.
        Unsupported: the kernel lacks what the engine needs.
    """
    framing.parse(spec)
    if len(set(ports)) > _PORTS_MAX:
        raise UsageError(f"{len(set(ports))} ports are too many", hint=f"at most {_PORTS_MAX} are possible")
    plan = AttachmentPlan(engine=choose_engine(engine), framing=spec, ports=tuple(sorted(set(ports))))
    with ExitStack() as stack:
        fd = cgroup.open_folder(folder)
        stack.callback(os.close, fd)
        group, base = os.fstat(fd).st_ino, _base(bpffs.find_or_mount(root))
        _refuse_relatives(base, folder.resolve(), group)
        pins = base / str(group)
        stack.enter_context(folders.lock(pins, lambda _holder: False))
        if plan.engine is Engine.SOLO:
            stack.enter_context(_namespace_of(folder))
        devices = kernel.devices_of(plan.engine)
        result = _resume(pins, plan, devices) or _attach_new(pins, plan, devices, fd)
        return AutolowatAttachment(
            cgroup=str(folder),
            engine=plan.engine,
            framing=spec,
            ports=plan.ports,
            devices=tuple(device.name for device in devices),
            result=result,
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
                f"AutoLOWAT is attached to {path}, which shares sockets with {folder}",
                hint=f"detach it first: autolowat detach --cgroup {path}",
            )


@contextmanager
def _namespace_of(folder: Path) -> Iterator[None]:
    """The calling thread in the network namespace of a cgroup's processes; where there are none, where it is."""
    found = {}
    for pid in cgroup.processes(folder):
        path = netns.of(pid)
        with suppress(OSError):
            if path is not None:
                found[os.stat(path).st_ino] = path
    if len(found) > 1:
        raise Conflict(
            f"the processes of {folder} are in {len(found)} network namespaces, and solo works in only one",
            hint="name the cgroup of one container or service",
        )
    with ExitStack() as stack:
        for path in found.values():
            stack.enter_context(netns.visit(path))
        yield


def _resume(pins: Place, plan: AttachmentPlan, devices: Sequence[tc.Device]) -> str | None:
    """What became of the attachment that is there; None without one. One that was cut off is committed."""
    with suppress(FileNotFoundError), ExitStack() as stack:
        maps = kernel.EngineMaps.open(stack, pins / "state")
        about = _about(maps)
        if about.plan != plan or (plan.engine is Engine.SOLO and about.namespace != netns.identity()):
            raise Conflict("AutoLOWAT is attached to this cgroup in another way", hint="run 'autolowat detach' first")
        new = [device for device in devices if not _has_program(pins, device)]
        if new:
            programs = _load(stack, maps, plan, new)
            _attach_devices(pins / "state", maps, programs, new, pins.name)
        if not maps.is_working():
            _commit(maps)
        return "extended" if new else "unchanged"
    _clean(pins)
    return None


def _has_program(pins: Place, device: tc.Device) -> bool:
    pin = pins / "state" / f"tcx_{device.index}"
    try:
        if bpffs.pinned_at_device(pin) == device.index:
            return True
        pin.unlink()  # of a device that had this index before
    except FileNotFoundError:
        pass
    return _label(pins.name) in tc.labels(device)


def _label(group: str) -> str:
    """Of the filters at devices."""
    return f"reuseport_tool_{group}"


def _about(maps: kernel.EngineMaps) -> About:
    return record_json.decode(About, maps.text().encode())


def _load(
    stack: ExitStack, maps: kernel.EngineMaps, plan: AttachmentPlan, devices: Sequence[tc.Device]
) -> Mapping[str, bpf.Program]:
    programs = kernel.load(plan.engine, maps, defines(plan), devices)
    for program in programs.values():
        stack.callback(program.close)
    return programs


def _attach_new(pins: Place, plan: AttachmentPlan, devices: Sequence[tc.Device], cgroup_fd: int) -> str:
    aside = pins / f"next_{os.getpid()}"
    about = About(plan=plan, namespace=netns.identity())
    with ExitStack() as stack:
        maps = kernel.EngineMaps.create(stack, plan.engine, plan.ports, record_json.encode(about).decode())
        programs = _load(stack, maps, plan, devices)
        aside.make()
        stack.push(lambda kind, *_: _clean(pins) if kind else None)
        for name, entry in maps.by_name().items():
            bpffs.pin(entry, aside / name)
        links = kernel.attach(plan.engine, programs, cgroup_fd)
        for link in links.values():
            stack.callback(link.close)
        for name, link in links.items():
            bpffs.pin(link, aside / f"link_{name}")
        _attach_devices(aside, maps, programs, devices, pins.name)
        aside.rename(pins / "state")
        _commit(maps)
    return "attached"


def _attach_devices(
    folder: Place,
    maps: kernel.EngineMaps,
    programs: Mapping[str, bpf.Program],
    devices: Sequence[tc.Device],
    group: str,
) -> None:
    for device in devices:
        program = kernel.at_device(programs, device)
        try:
            with tc.attach_tcx(program, device) as link:
                bpffs.pin(link, folder / f"tcx_{device.index}")
        except Unsupported:
            _add_filter(maps, program, device, group)


def _add_filter(maps: kernel.EngineMaps, program: bpf.Program, device: tc.Device, group: str) -> None:
    about = _about(maps)
    ours = () if tc.has_ingress(device) else (device.index,)
    maps.set_text(record_json.encode(replace(about, filters=True, qdiscs=(*about.qdiscs, *ours))).decode())
    tc.IngressFilter(program, device, _label(group))


def defines(plan: AttachmentPlan) -> dict[str, int]:
    """What an engine is compiled with for a plan."""
    chosen = framing.parse(plan.framing)
    return {**chosen.defines(), "ARM_ACTIVE": int(not chosen.accepted_only)}


def _commit(maps: kernel.EngineMaps) -> None:
    maps.set_working(True)  # commit point: new connections are followed


def _walk(maps: kernel.EngineMaps, about: About) -> list[kernel.FollowedSocket]:
    """Walk over the sockets of every network namespace that may have followed ones and can be reached."""
    found: list[kernel.FollowedSocket] = []
    with kernel.Walk(about.plan.engine, maps) as walk:
        for path in _namespaces(about):
            with suppress(NotFound), netns.visit(path):
                found += walk.read()
    return found


def _namespaces(about: About) -> list[str]:
    if about.plan.engine is Engine.NATIVE:
        return netns.reachable()
    path = netns.find(about.namespace)
    return [path] if path else []


def _clean(pins: Place) -> None:
    """Remove every attachment of a cgroup, complete or not."""
    if (pins / "state").exists():
        (pins / "state").rename(pins / f"gone_{os.getpid()}")
    for name in pins.names():
        _remove_filters(pins / name, pins.name)
        (pins / name).remove()


def _remove_filters(folder: Place, group: str) -> None:
    with suppress(FileNotFoundError), ExitStack() as stack:
        about = _about(kernel.EngineMaps.open(stack, folder))
        for path in _namespaces(about) if about.filters else []:
            with suppress(NotFound), netns.visit(path):
                tc.remove_filters(_label(group), list(about.qdiscs))


def detach(folder: Path, root: Path | None) -> AutolowatDetached:
    """Set SO_RCVLOWAT of every followed socket to 1, then remove the programs. Traffic may go on.

    Raises:
        NotFound: nothing is attached to this cgroup.
        Unsupported: the kernel has no iterator that may set socket options, and a socket is in the middle of a frame.
    """
    base = _base(bpffs.find(root))
    pins = base / str(_identity(folder))
    with folders.lock(pins, lambda _holder: False), ExitStack() as stack:
        try:
            maps = kernel.EngineMaps.open(stack, pins / "state")
        except FileNotFoundError:
            _clean(pins)
            raise NotFound(
                f"AutoLOWAT is not attached to {folder}", hint="'autolowat status' shows where it is attached"
            ) from None
        maps.set_working(False)
        # A program that was running when this was set had its socket locked, and the walk locks each.
        about = _about(maps)
        found = _walk(maps, about)
        left = _following(found)
        if left and wait_until(lambda: not _following(_walk(maps, about)), _GIVEN_UP_S):
            left = 0
        if left:
            raise Unsupported(
                f"{left} sockets are in the middle of a frame, and iterators cannot set SO_RCVLOWAT on this kernel",
                hint="run it again later; the programs stay attached and stop following with the next segment",
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
        maps = kernel.EngineMaps.open(stack, pins / "state")
        about = _about(maps)
        # While it is not working a walk would change sockets.
        found = _walk(maps, about) if maps.is_working() else []
        return Autolowat(
            cgroup=str(cgroup.by_id(group) or group),
            engine=about.plan.engine,
            framing=about.plan.framing,
            ports=about.plan.ports,
            devices=_described_devices(pins, about),
            working=maps.is_working(),
            sockets=len(found),
            following=_following(found),
            opted_in=maps.count(kernel.OPTED_IN),
            frames=maps.count(kernel.FRAMES),
            wakeups_saved=maps.count(kernel.SAVED),
            marks=maps.count(kernel.MARKS),
            fail_opens=maps.fail_opens(),
        )


def _described_devices(pins: Place, about: About) -> tuple[str, ...]:
    """The devices that still have the program; one that was removed, or whose filter was, is missing."""
    found = []
    for path in _namespaces(about) if about.plan.engine is Engine.SOLO else []:
        with suppress(NotFound), netns.visit(path):
            found += [device.name for device in tc.topmost_devices() if _has_program(pins, device)]
    return tuple(found)


def _following(found: Iterable[kernel.FollowedSocket]) -> int:
    return sum(1 for entry in found if entry.armed)
