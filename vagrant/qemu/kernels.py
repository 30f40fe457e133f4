"""vagrant/kernels.toml as data."""

from __future__ import annotations

import tomllib
from pathlib import Path

from reuseport_tool.record import record
from vagrant.qemu.cache import CHECKOUT
from vagrant.qemu.errors import VmError

TABLE = CHECKOUT / "vagrant" / "kernels.toml"


@record
class Kernel:
    """One row of the table.

    Attributes:
        name: as in KERNEL=<name>.
        suite: the Debian suite that has the package, without its -security and -updates.
        package: a linux-image package, a meta-package that depends on one, or a linux-source package.
        source: whether `package` is a source, to be built with the patches of vagrant/kernel/.
        expect: what the proofs must find here, by proof (vagrant/guest/proofs.py).
        kernel_tests: REUSEPORT_TOOL_KERNEL_TESTS in the guest: with "skip" a test may be skipped for want of
            a feature that the kernel is too old for, with "require" none.
        deadline_s: for the whole of `vm-test`.
        note: one sentence for docs/kernels.md.
    """

    name: str
    suite: str
    package: str
    source: bool
    expect: dict[str, str]
    kernel_tests: str
    deadline_s: int
    note: str


def load(path: Path = TABLE) -> dict[str, Kernel]:
    """Every row by name. Raises VmError for a table that does not make sense."""
    try:
        rows = tomllib.loads(path.read_text())["kernels"]
        return {name: _kernel(name, row) for name, row in rows.items()}
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise VmError(f"{path} does not make sense: {error}") from error


def _kernel(name: str, row: dict[str, object]) -> Kernel:
    row = {"source": False, "expect": {}, "kernel_tests": "require", "deadline_s": 1800, "note": "", **row}
    return Kernel(name=name, **row)  # type: ignore[arg-type]


def find(name: str) -> Kernel:
    """The row of that name. Raises VmError."""
    table = load()
    if name not in table:
        raise VmError(f"no kernel named {name!r}", hint=f"KERNEL is one of: {', '.join(table)}")
    return table[name]
