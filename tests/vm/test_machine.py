"""How a run ends, whatever becomes of its VM: a stand-in for virtme-ng plays the VM, so that no kernel boots."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reuseport_tool.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
# `vagrant.qemu` with the stand-in of its first argument, on a machine that lacks nothing.
COMMAND = """
import sys
from pathlib import Path
from vagrant.qemu import __main__ as command, machine
from vagrant.qemu.images import Image
machine._virtme = lambda: Path(sys.argv[1])
machine.check_host = lambda: None
machine.kvm_fault = lambda vmlinuz: "a test"
machine.BOOT_DEADLINE_S = 2.0
command.image = lambda kernel: Image(Path("vmlinuz"), "stand-in", "1")
%s
sys.exit(command.main(sys.argv[2:]))
"""
# The signal arrives when the VM runs and the call that started it has not returned.
EARLY_SIGNAL = """
import os, signal, subprocess
from reuseport_tool.waiting import wait_until

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        assert wait_until(Path(os.environ["CHILD"]).exists, 30)
        signal.raise_signal(signal.SIGTERM)

machine.subprocess.Popen = Popen
"""
# It knows the run's folder by --rwdir and the pipe of the guest's stdout by a port's path, and leaves the pid of a
# child that only the runner can end.
STAND_IN = """#!/bin/bash
for word; do case $word in *,id=vm.stdout,path=*) stdout=${word##*/} ;; esac; done
while [ "$1" != --rwdir ]; do shift; done
folder=$2
hang() { sleep 1000 & echo $! > "$CHILD"; wait; }
"""
VERDICT = 'touch "$folder/booted"; echo 7 > "$folder/verdict"'
PANIC = 'touch "$folder/booted"; echo "Kernel panic - not syncing: Attempted to kill init!"; exit 1'
HANG = 'touch "$folder/booted"; echo "== doctor" >&$stdout; hang'
NO_BOOT = "hang"

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`vagrant.qemu run` with a VM that behaves as told; nothing of it may be left."""
    processes: list[subprocess.Popen[str]] = []
    child = tmp_path / "child"

    def run(behaviour: str, *options: str, patch: str = "") -> subprocess.Popen[str]:
        stand_in = tmp_path / "virtme-run"
        stand_in.write_text(STAND_IN + behaviour + "\n")
        stand_in.chmod(0o755)
        command = [sys.executable, "-c", COMMAND % patch, str(stand_in), "run", "debian-6.1", "true", *options]
        environment = {**os.environ, "REUSEPORT_TOOL_CACHE": str(tmp_path / "cache"), "CHILD": str(child)}
        processes.append(subprocess.Popen(command, cwd=CHECKOUT, env=environment, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()
    assert list((tmp_path / "cache" / "runs").glob("vm-*")) == []
    if child.exists():
        assert not Path("/proc", child.read_text().strip()).exists()


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        (VERDICT, 7, "emulated"),
        (PANIC, 101, "without a verdict: Kernel panic - not syncing: Attempted to kill init!"),
        (HANG, 101, "no verdict within 3 s (the command was at: == doctor)"),
        (NO_BOOT, 101, "not booted within 2 s"),
    ],
    ids=["verdict", "panic", "hang", "no boot"],
)
def test_every_end_is_named_and_leaves_nothing(start: Start, behaviour: str, code: int, message: str) -> None:
    process = start(behaviour, "--deadline", "3")
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert message in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_vm(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    process = start(HANG)
    assert wait_until((tmp_path / "child").exists, 30)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the VM and its files are gone" in said


def test_a_signal_while_the_vm_is_being_started_ends_it(start: Start) -> None:
    process = start(HANG, patch=EARLY_SIGNAL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the VM and its files are gone" in said


@pytest.mark.parametrize("verb", [("test", "debian-6.1"), ("matrix", "debian-6.1")])
def test_a_missing_package_is_named(tmp_path: Path, verb: tuple[str, ...]) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "REUSEPORT_TOOL_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "vagrant.qemu", *verb]
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 100
    assert "qemu-system-x86" in done.stderr
    assert "apt-get install" in done.stderr
