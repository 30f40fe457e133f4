"""Puts a kernel in memory in the place of the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.group import pins, status
from reuseport_tool.kernel import bpf, bpffs, cgroup, diag, iterator, pidfd, processes, program, sockets
from reuseport_tool.probes import programs
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.objects import FakeMap, FakeProgram, Module, Objects
from tests.unit.group.fake.processes import Processes
from tests.unit.group.fake.sockets import Sockets


def install(monkeypatch: pytest.MonkeyPatch, root: Path) -> Kernel:
    """Put a fake kernel in the place of the real one."""
    kernel = Kernel(root)
    objects, socks, procs = Objects(kernel), Sockets(kernel), Processes(kernel)
    replaced: dict[Any, dict[str, Any]] = {
        bpf.Map: {"create": objects.create, "by_id": lambda number: objects.by_id(number, FakeMap)},
        bpf.Program: {"by_id": lambda number: objects.by_id(number, FakeProgram)},
        bpf: {"lookup_batch": objects.batch},
        bpffs: {
            "is_bpffs": lambda folder: folder == root,
            "pin": objects.pin,
            "open_map": objects.open_map,
            "open_program": objects.open_program,
        },
        diag: {"bound_sockets": socks.bound},
        iterator: {"listeners_of": socks.listeners_of},
        pins: {"listeners_of": socks.listeners_of},
        status: {"listeners_of": socks.listeners_of},
        pidfd: {"take_fd": socks.take_fd},
        processes: procs.replaced(),
        cgroup: {"service": lambda pid: None},
        program: {"Module": lambda source: Module(kernel, source)},
        programs: {"loads_migrating_program": lambda: True},
        sockets: {
            "cookie": lambda fd: kernel.copies[fd].cookie,
            "is_reuseport": lambda fd: kernel.copies[fd].reuseport,
            "attach_program": socks.attach,
            "detach_program": socks.detach,
        },
    }
    for place, names in replaced.items():
        for name, fake in names.items():
            monkeypatch.setattr(place, name, fake)
    return kernel
