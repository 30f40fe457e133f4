"""What works on this kernel, with these rights."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.check import udp_modes
from reuseport_tool.errors import Unsupported
from reuseport_tool.group.scratch import Scratch
from reuseport_tool.kernel import capabilities, loopback, netns, sockets
from reuseport_tool.models import Capability, Counters, Doctor, Policy
from reuseport_tool.probes import features, migration, misc
from reuseport_tool.probes.engine import Probe

_PORT = 8080  # of a namespace where nothing else is
_OUR_PROGRAM = "the tool's program"

# What the strategy `migrate` cannot do without.
_NEEDED = (
    "BCC",
    _OUR_PROGRAM,
    migration.MIGRATION_BY_PROGRAM,
    migration.MIGRATION_WAKES,
    misc.PIDFD_GETFD,
    misc.BPFFS,
)
_USED_FOR = {
    "CAP_BPF": "loading programs, making maps",
    "CAP_NET_ADMIN": "sysctls and sock_diag of the network namespace",
    "CAP_PERFMON": "the iterator that reads a group's program and half-open connections",
    "CAP_SYS_PTRACE": "taking listeners from processes of other users",
    "CAP_SYS_ADMIN": "network namespaces, mounting a bpffs, BPF statistics",
}


def doctor(bpffs_folder: Path | None) -> Doctor:
    """Try everything that the tool uses. A refusal is an answer, not an error.

    Args:
        bpffs_folder: where pins are to be kept, None for the usual places.
    """
    ours = Probe(name=_OUR_PROGRAM, since="5.14", needs=("CAP_SYS_ADMIN", "CAP_BPF", "CAP_NET_ADMIN"), run=_our_program)
    found = (*features.probe_all(bpffs_folder), *(probe.answer() for probe in (*udp_modes.PROBES, ours)))
    missing = tuple(feature.name for feature in found if feature.name in _NEEDED and not feature.available)
    return Doctor(
        kernel=os.uname().release, ok=not missing, missing=missing, features=found, capabilities=_capabilities()
    )


def _capabilities() -> tuple[Capability, ...]:
    held = capabilities.effective()
    return tuple(Capability(name=name, held=name in held, used_for=used_for) for name, used_for in _USED_FOR.items())


def _our_program() -> str:
    """The policy `hash` with two generations: one connection is selected, then migrated."""
    with netns.throw_away(), ExitStack() as stack:
        scratch = Scratch(stack, Policy.HASH)
        old = stack.enter_context(loopback.listener(_PORT))
        scratch.add_generation(1, [old])
        sockets.attach_program(old.fileno(), scratch.program)
        stack.enter_context(loopback.connect(_PORT))
        loopback.wait_queued(old)
        new = stack.enter_context(loopback.listener(_PORT))
        scratch.add_generation(2, [new])
        moved = loopback.migrate(old, new)
        counted = scratch.counters()
    if not moved.accepted or counted != Counters(selected=1, migrated_established=1):
        raise Unsupported(f"selected {counted.selected} of 1 connections, migrated {counted.migrated_established}")
    return "selected, then migrated and counted"
