"""Every kernel of the table through `test`, and what came out as docs/kernels.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from collections.abc import Sequence

from vagrant.qemu import machine
from vagrant.qemu.cache import CHECKOUT, say
from vagrant.qemu.errors import VmError, VmLost
from vagrant.qemu.images import Image, image
from vagrant.qemu.kernels import Kernel

DOCUMENT = CHECKOUT / "docs" / "kernels.md"
MARKS = {True: "yes", False: "no", None: "?"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel's line: `features` by name as "yes", "no" or "?", and the verdict in words."""

    kernel: Kernel
    version: str
    features: dict[str, str]
    verdict: str
    duration_s: float
    exit_code: int


def environment(kernel: Kernel) -> dict[str, str]:
    """What every command in the guest of this kernel gets."""
    return {"VM_KERNEL": kernel.name, "REUSEPORT_TOOL_KERNEL_TESTS": kernel.kernel_tests}


def run_tests(kernel: Kernel, bootable: Image, deadline_s: float | None = None) -> machine.Outcome:
    """The tests and proofs of one kernel in its VM."""
    proofs = shlex.join(f"{name}={expected}" for name, expected in kernel.expect.items())
    command = f"vagrant/guest/test {proofs}"
    return machine.run(bootable, command, environment(kernel), deadline_s or kernel.deadline_s)


def run(kernels: Sequence[Kernel], *, complete: bool) -> int:
    """Test each kernel and print the table. The worst exit code.

    The document is written when the run is `complete` and every VM gave its verdict.
    """
    rows = [_row(kernel) for kernel in kernels]
    table = _table(rows)
    print(table)
    if complete and all(row.version for row in rows):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(_document(table, rows))
        say(f"wrote {DOCUMENT.relative_to(CHECKOUT)}")
    return max(row.exit_code for row in rows)


def _row(kernel: Kernel) -> Row:
    say(f"== {kernel.name}")
    try:
        bootable = image(kernel)
        outcome = run_tests(kernel, bootable)
    except VmError as error:
        say(f"error: {error.message}")
        return Row(kernel, "", {}, "VM lost" if isinstance(error, VmLost) else "not run", 0, error.exit_code)
    verdict = "passed" if outcome.status == 0 else "FAILED"
    version = f"{bootable.package} {bootable.version}"
    return Row(kernel, version, _features(outcome), verdict, outcome.duration_s, 1 if outcome.status else 0)


def _features(outcome: machine.Outcome) -> dict[str, str]:
    """By `doctor`, and by the proofs under their own names."""
    doctor = json.loads(outcome.results.get("doctor.json") or "{}")
    found = {feature["name"]: MARKS[feature["available"]] for feature in doctor.get("features", [])}
    proofs = json.loads(outcome.results.get("proofs.json") or "{}")
    return found | {f"{name} (proof)": value for name, value in proofs.items()}


def _table(rows: Sequence[Row]) -> str:
    """Markdown: a column for each kernel, a line for each feature."""
    names = list(dict.fromkeys(name for row in rows for name in row.features))
    lines = [
        ["", *(row.kernel.name for row in rows)],
        ["---", *("---" for _ in rows)],
        *([name, *(row.features.get(name, "–") for row in rows)] for name in names),
        ["**verdict**", *(row.verdict for row in rows)],
        ["seconds", *(f"{row.duration_s:.0f}" for row in rows)],
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def _document(table: str, rows: Sequence[Row]) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    kernels = "\n".join(f"| {row.kernel.name} | {row.version or '–'} | {row.kernel.note} |" for row in rows)
    return f"""# What works on which kernel

Written by `make vm-matrix` on {today}; do not edit. Each kernel was booted in QEMU, and each line is
what was found by doing it there: `reuseport-tool doctor` and the proofs of `vagrant/guest/`. The
verdict is that of the kernel tests, with everything expected of that kernel (`vagrant/kernels.toml`).
A "no" that the table of kernels expects is a pass.

{table}

| kernel | Debian package | |
| --- | --- | --- |
{kernels}
"""
