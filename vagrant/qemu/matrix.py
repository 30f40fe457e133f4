"""Every kernel of the table through `test`, and what came out as docs/kernels.md."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from reuseport_tool.record import record
from vagrant.qemu import machine
from vagrant.qemu.cache import CHECKOUT, POLL_S, say
from vagrant.qemu.errors import VmLost
from vagrant.qemu.images import Image
from vagrant.qemu.kernels import Kernel
from vagrant.qemu.runfolder import run_folder
from vagrant.qemu.signals import held

DOCUMENT = CHECKOUT / "docs" / "kernels.md"
# An emulated VM keeps a core busy.
AT_A_TIME = min(2, os.cpu_count() or 1)
MARKS = {True: "yes", False: "no", None: "?"}


@record
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
    """Test the kernels, AT_A_TIME of them together, and print the table. The worst exit code.

    The output of each is printed as a whole when it is done. The document is written when the run is
    `complete` and every VM gave its verdict.
    """
    rows = _rows(kernels)
    table = _table(rows)
    print(table, flush=True)
    if complete and all(row.version for row in rows):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(_document(table, rows))
        say(f"wrote {DOCUMENT.relative_to(CHECKOUT)}")
    return max(row.exit_code for row in rows)


def _rows(kernels: Sequence[Kernel]) -> list[Row]:
    waiting, rows = list(kernels), dict[str, Row]()
    running: list[_Test] = []
    with run_folder() as folder, contextlib.ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < AT_A_TIME:
                running.append(_Test(waiting.pop(0), folder, stack))
            time.sleep(POLL_S)
            for test in [test for test in running if test.ended()]:
                running.remove(test)
                test.show()
                rows[test.kernel.name] = test.row()
    return [rows[kernel.name] for kernel in kernels]


class _Test:
    """`vagrant.qemu test` of one kernel as a process, so that its output is apart and a fault of it stays its own.

    The stack ends it.
    """

    def __init__(self, kernel: Kernel, folder: Path, stack: contextlib.ExitStack) -> None:
        self.kernel = kernel
        self._log = folder / f"{kernel.name}.log"
        self._report = folder / f"{kernel.name}.json"
        command = [sys.executable, "-m", "vagrant.qemu", "test", kernel.name, "--report", str(self._report)]
        with self._log.open("w") as log, held():
            self._process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(self._end)
        say(f"== {kernel.name}: started")

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def show(self) -> None:
        print(f"== {self.kernel.name}\n{self._log.read_text(errors='replace')}", flush=True)

    def row(self) -> Row:
        code = self._process.returncode
        if not self._report.exists():
            return Row(
                kernel=self.kernel,
                version="",
                features={},
                verdict="VM lost" if code == VmLost.exit_code else "not run",
                duration_s=0,
                exit_code=code or 1,
            )
        report = json.loads(self._report.read_text())
        verdict = "passed" if code == 0 else "FAILED"
        features = _features(report["results"])
        return Row(
            kernel=self.kernel,
            version=report["version"],
            features=features,
            verdict=verdict,
            duration_s=report["duration_s"],
            exit_code=code,
        )


def write_report(path: Path, bootable: Image, outcome: machine.Outcome) -> None:
    """What a row is made of, for the process that makes the table."""
    version = f"{bootable.package} {bootable.version}"
    report = {"version": version, "results": outcome.results, "duration_s": outcome.duration_s}
    path.write_text(json.dumps(report))


def _features(results: Mapping[str, str]) -> dict[str, str]:
    """By `doctor`, and by the proofs under their own names."""
    doctor = json.loads(results.get("doctor.json") or "{}")
    found = {feature["name"]: MARKS[feature["available"]] for feature in doctor.get("features", [])}
    proofs = json.loads(results.get("proofs.json") or "{}")
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


_MPTCP = """## MPTCP

No reuseport program can be attached to a listener made with IPPROTO_MPTCP (Go's default from 1.24 on): the kernel
answers EOPNOTSUPP. With net.ipv4.tcp_migrate_req=1 the kernel moves the connections of plain TCP clients: on 6.18, 20
of 20 were answered. It also moves those of MPTCP clients and counts them as moved, but no data ever arrives on them:
on 6.18, 0 of 20 were answered, and each client was reset in the end. So the tool refuses such a group with exit code
4, whatever the strategy. Start the server without MPTCP: `GODEBUG=multipathtcp=0` for Go,
`sysctl net.mptcp.enabled=0` for any server.
"""


def _document(table: str, rows: Sequence[Row]) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    kernels = "\n".join(f"| {row.kernel.name} | {row.version or '–'} | {row.kernel.note} |" for row in rows)
    return f"""# What works on which kernel

Written by `make vm-matrix` on {today}; do not edit. Each kernel ran in QEMU, where
`reuseport-tool doctor` and the proofs of `vagrant/guest/` tried each line for real. The verdict is "passed" if the
tests marked `vm` passed and every proof found what `vagrant/kernels.toml` expects; an expected "no" is a pass.

{table}

| kernel | Debian package | |
| --- | --- | --- |
{kernels}

## UDP

`doctor` hands over a UDP group once in each way of `--flows`, with real datagrams. The table has its answers, and
those tests of `tests/kernel/udp` that also ran on Debian's kernels in emulated VMs, in November 2026. "not in 90 s"
means that the emulated CPU did not finish the test within its limit:

| | 5.10.262 | 6.1.192 | 6.12.118 | 7.3.4 |
| --- | --- | --- | --- | --- |
| a switch with `--flows address` | 1 passed | 7 passed | 1 passed | not run |
| QUIC connections with `--flows quic` | 1 passed | 12 passed | 1 passed | not run |
| a reload under load, `none` | 0 lost | not in 90 s | 0 lost | not in 90 s |
| a reload under load, `address` | 0 lost | not in 90 s | 0 lost | 0 lost |
| raw sockets, which `--run` needs | 21 passed | not run | 21 passed | 21 passed |
| `doctor`: `--flows none`, `address`, `quic` | yes, yes, yes | yes, yes, yes | yes, yes, yes | yes, yes, yes |

`check udp-reload` fits its load and its deadlines to the machine. On one emulated CPU all 30 cases came out as
expected on 5.10.262 (1,257 s, beside other work), 6.1.192 (463 s), 6.12.118 (1,065 s, beside other work), and 7.3.4
(624 s).

{_MPTCP}"""
