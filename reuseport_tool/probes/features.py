"""What the running kernel can do, found out by doing it in a throw-away network namespace.

Kernel versions say little: distributions port features back, and tcp_migrate_req is a file on some 5.10 kernels that
have nothing behind it. Each module of this folder has a table of probes of one subject.
"""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.models import Feature
from reuseport_tool.probes import autolowat, links, maps, migration, misc, programs, tcp
from reuseport_tool.probes.migration import migration_wakes, migration_works

__all__ = ["PROBES", "migration_wakes", "migration_works", "probe_all"]

PROBES = (
    *links.PROBES,
    *programs.PROBES,
    *maps.PROBES,
    *migration.PROBES,
    *tcp.PROBES,
    *misc.PROBES,
    *autolowat.PROBES,
)


def probe_all(bpffs_folder: Path | None = None) -> tuple[Feature, ...]:
    """Every feature of the kernel that the tool uses.

    Args:
        bpffs_folder: where pins are to be kept, None for the usual places.
    """
    return tuple(probe.answer() for probe in (*PROBES, misc.pins_in(bpffs_folder)))
