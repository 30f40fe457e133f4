"""autolowat attach, status and detach over a kernel in memory: what is attached where, and what is left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reuseport_tool.autolowat import attachment
from reuseport_tool.errors import Conflict, NotFound, ToolError, Unsupported, UsageError
from reuseport_tool.kernel import autolowat, bpf, bpffs, cgroup, netns, tc
from reuseport_tool.kernel.autolowat import FollowedSocket
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.program import ProgramType
from reuseport_tool.models import AutolowatAttachment, Engine
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.objects import FakeMap, FakeProgram

LO, ETH = tc.Device(index=1, name="lo", has_header=True), tc.Device(index=2, name="eth0", has_header=True)


class Link(bpf.Handle):
    """An attachment, at a device or at the cgroup (0)."""

    def __init__(self, kernel: Kernel, device: int) -> None:
        self._kernel = kernel
        self.fd = kernel.opened(kernel.make(type=-1, name="link", values={"device": bytes([device])}))

    def close(self) -> None:
        self._kernel.closed(self.fd)


class Machine:
    """Devices, filters and sockets."""

    def __init__(self, kernel: Kernel, groups: Path) -> None:
        self.kernel, self.groups = kernel, groups
        self.devices = [LO]
        self.has_tcx = True
        self.filters: dict[int, list[str]] = {}
        self.qdiscs: set[int] = set()
        self.sockets: list[list[FollowedSocket]] = [[]]
        self.processes: list[int] = []
        self.namespaces = {"/here": netns.identity()}

    def attach_tcx(self, _program: bpf.Program, device: tc.Device) -> bpf.Handle:
        self.kernel.change("tcx")
        if not self.has_tcx:
            raise Unsupported("the kernel has no tcx")
        return Link(self.kernel, device.index)

    def filter(self, _program: bpf.Program, device: tc.Device, label: str) -> None:
        self.kernel.change("filter")
        self.qdiscs.add(device.index)
        self.filters.setdefault(device.index, []).append(label)

    def remove_filters(self, label: str, qdiscs: list[int]) -> None:
        self.filters = {index: [other for other in found if other != label] for index, found in self.filters.items()}
        self.qdiscs -= {index for index in qdiscs if not self.filters.get(index)}

    def pinned_at(self, place: Place) -> int:
        with place.file() as fd:
            return self.kernel.objects[int(Path(f"/proc/self/fd/{fd}").read_text())].values["device"][0]

    def walk(self, _engine: Engine, _maps: object) -> Any:
        found = self.sockets[0] if len(self.sockets) == 1 else self.sockets.pop(0)
        return contextlib.nullcontext(SimpleNamespace(read=lambda: found))

    def load(self, engine: Engine, maps: autolowat.EngineMaps, _defines: object, _devices: object) -> Mapping[str, Any]:
        self.kernel.change("load")
        assert maps.text()
        entry = self.kernel.make(type=ProgramType.SOCK_OPS, name=engine)
        return {name: FakeProgram(self.kernel, entry) for name in ("a", "b")}

    def group(self, name: str) -> Path:
        (self.groups / name).mkdir(parents=True)
        return self.groups / name

    def by_id(self, identity: int) -> Path | None:
        found = [path for path in self.groups.rglob("*") if path.stat().st_ino == identity]
        return found[0] if found else None


@pytest.fixture
def machine(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine(kernel, tmp_path / "cgroup")

    def create_typed(kind: bpf.MapType, name: str, **how: Any) -> bpf.Map:
        how.pop("locked", None)
        return FakeMap(kernel, kernel.make(type=kind, name=name, **how))

    replaced: dict[Any, dict[str, Callable[..., Any]]] = {
        bpf.Map: {"create_typed": create_typed},
        bpffs: {"pinned_at_device": made.pinned_at},
        autolowat: {
            "missing_for_native": lambda: ["a hook"],
            "devices_of": lambda engine: made.devices if engine is Engine.SOLO else [],
            "load": made.load,
            "attach": lambda *_: {"a": Link(kernel, 0), "b": Link(kernel, 0)},
            "at_device": lambda programs, _device: programs["a"],
            "Walk": made.walk,
        },
        tc: {
            "attach_tcx": made.attach_tcx,
            "IngressFilter": made.filter,
            "has_ingress": lambda device: device.index in made.qdiscs,
            "labels": lambda device: made.filters.get(device.index, []),
            "remove_filters": made.remove_filters,
            "topmost_devices": lambda: made.devices,
        },
        cgroup: {
            "open_folder": lambda folder: os.open(folder, os.O_RDONLY),
            "by_id": made.by_id,
            "processes": lambda _folder: made.processes,
        },
        netns: {
            "visit": lambda _path: contextlib.nullcontext(),
            "find": lambda inode: next((path for path, other in made.namespaces.items() if other == inode), None),
        },
    }
    for place, names in replaced.items():
        for name, fake in names.items():
            monkeypatch.setattr(place, name, fake)
    return made


def attach(machine: Machine, folder: Path, ports: tuple[int, ...] = (), **how: Any) -> AutolowatAttachment:
    return attachment.attach(folder, how.get("spec", "rpc"), ports, how.get("engine"), machine.kernel.root)


def test_attach_status_detach(machine: Machine) -> None:
    web = machine.group("web")
    report = attach(machine, web, (443, 80, 80))
    assert (report.result, report.engine, report.ports, report.devices) == ("attached", Engine.SOLO, (80, 443), ("lo",))
    machine.sockets = [[FollowedSocket(1, 8), FollowedSocket(0, 1)]]
    (shown,) = attachment.status(machine.kernel.root).attachments
    assert (shown.cgroup, shown.working, shown.sockets, shown.following) == (str(web), True, 2, 1)
    assert (shown.devices, shown.ports, shown.framing) == (("lo",), (80, 443), "rpc")
    machine.sockets = [[FollowedSocket(0, 1)]]
    assert attachment.detach(web, machine.kernel.root).sockets == 1
    assert attachment.status(machine.kernel.root).attachments == ()
    assert list(machine.kernel.root.iterdir()) == []
    with pytest.raises(NotFound):
        attachment.detach(web, machine.kernel.root)


def test_attach_again_takes_in_new_devices_and_refuses_another_plan(machine: Machine) -> None:
    web = machine.group("web")
    attach(machine, web)
    assert attach(machine, web).result == "unchanged"
    machine.devices = [LO, ETH]
    assert attach(machine, web).result == "extended"
    assert attachment.status(machine.kernel.root).attachments[0].devices == ("lo", "eth0")
    for other in ({"ports": (80,)}, {"spec": "u32be"}, {"engine": Engine.NATIVE}):
        with pytest.raises((Conflict, UsageError)):
            attach(machine, web, **other)
    machine.devices = [tc.Device(index=2, name="new0", has_header=False)]
    assert attachment.status(machine.kernel.root).attachments[0].devices == ("new0",)


def test_without_tcx_filters_are_used_and_go_with_the_qdiscs_that_were_made(machine: Machine) -> None:
    machine.has_tcx, machine.devices, machine.qdiscs = False, [LO, ETH], {2}
    machine.filters = {2: ["somebody's"]}
    web = machine.group("web")
    attach(machine, web)
    assert attach(machine, web).result == "unchanged"
    assert {index: len(found) for index, found in machine.filters.items()} == {1: 1, 2: 2}
    attachment.detach(web, machine.kernel.root)
    assert machine.filters == {1: [], 2: ["somebody's"]}
    assert machine.qdiscs == {2}, "clsact of ours goes, another's stays"


def test_two_programs_never_follow_one_socket(machine: Machine) -> None:
    inner = machine.group("slice/web")
    attach(machine, inner)
    with pytest.raises(Conflict, match="shares sockets"):
        attach(machine, inner.parent)
    machine.group("slice/web/below")
    with pytest.raises(Conflict, match="shares sockets"):
        attach(machine, inner / "below")
    assert attach(machine, machine.group("slice/other")).result == "attached"


def test_processes_of_several_namespaces(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.processes = [1, 2, 3]
    for number in (1, 2):
        (tmp_path / f"ns{number}").touch()
    monkeypatch.setattr(netns, "of", lambda pid: str(tmp_path / f"ns{pid}") if pid < 3 else None)
    with pytest.raises(Conflict, match="in 2 network namespaces"):
        attach(machine, machine.group("web"))
    machine.processes = [1, 3]
    assert attach(machine, machine.group("other")).result == "attached"


def test_sockets_in_the_middle_of_a_frame(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "_GIVEN_UP_S", 0.05)
    web = machine.group("web")
    attach(machine, web)
    machine.sockets = [[FollowedSocket(1, 268)]]
    with pytest.raises(Unsupported, match="1 sockets are in the middle of a frame"):
        attachment.detach(web, machine.kernel.root)
    (shown,) = attachment.status(machine.kernel.root).attachments
    assert (shown.working, shown.sockets) == (False, 0), "a walk now would change sockets"
    assert attach(machine, web).result == "unchanged"
    assert attachment.status(machine.kernel.root).attachments[0].working
    machine.sockets = [[FollowedSocket(1, 268)], [FollowedSocket(0, 1)]]
    assert attachment.detach(web, machine.kernel.root).sockets == 1


def test_a_cgroup_that_was_removed_is_named_by_its_number(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    web = machine.group("web")
    attach(machine, web)
    number = str(web.stat().st_ino)
    web.rmdir()
    assert attachment.status(machine.kernel.root).attachments[0].cgroup == number
    attachment.detach(Path(number), machine.kernel.root)
    assert attachment.status(machine.kernel.root).attachments == ()


def test_what_makes_no_sense(machine: Machine, tmp_path: Path) -> None:
    web = machine.group("web")
    with pytest.raises(UsageError, match="ports are too many"):
        attach(machine, web, tuple(range(1, 3000)))
    with pytest.raises(UsageError):
        attach(machine, web, spec="nonsense:9")
    with pytest.raises(NotFound):
        attachment.status(tmp_path)


@pytest.mark.parametrize("has_tcx", [True, False])
def test_an_error_at_any_change_leaves_nothing(machine: Machine, has_tcx: bool) -> None:
    machine.has_tcx, machine.devices = has_tcx, [LO, ETH]
    web = machine.group("web")
    made: list[str] = []
    machine.kernel.before_change = made.append
    attach(machine, web, (80,))
    for number in range(len(made)):
        machine.kernel.before_change = lambda name: None
        attachment.detach(web, machine.kernel.root)
        left = [number]

        def fail(_name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                left[0] = 1 << 30
                raise ToolError("no memory")

        machine.kernel.before_change = fail
        with pytest.raises(ToolError, match="no memory"):
            attach(machine, web, (80,))
        if number < len(made) - 1:  # the last one is the commit
            assert machine.kernel.pinned() == []
            assert not any(machine.filters.values())
            assert not machine.qdiscs
        machine.kernel.before_change = lambda name: None
        assert attach(machine, web, (80,)).result in ("attached", "unchanged")
        assert attachment.status(machine.kernel.root).attachments[0].working
