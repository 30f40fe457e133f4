"""Whether KVM runs a kernel here: found out by booting one, because a /dev/kvm that opens proves little."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DEADLINE_S = 20.0
QEMU = "qemu-system-x86_64"
# Without a root file system a kernel that runs at all ends in this panic, and QEMU ends with it.
ALIVE = "Unable to mount root fs"


def kvm_fault(vmlinuz: Path) -> str | None:
    """None when KVM boots this kernel, else the reason in a few words."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "no access to /dev/kvm"
    command = [
        *(QEMU, "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-monitor", "none", "-serial", "stdio", "-kernel", str(vmlinuz), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        return f"a test boot hung for {DEADLINE_S:.0f} s"
    if ALIVE in done.stdout:
        return None
    first = next((line for line in done.stderr.splitlines() if line.strip()), f"QEMU ended with {done.returncode}")
    return first.removeprefix(f"{QEMU}: ").removeprefix("error: ")
