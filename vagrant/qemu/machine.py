"""One VM: virtme-ng's command line, its output, its deadlines, its end and its verdict."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from vagrant.qemu.accel import QEMU, kvm_fault
from vagrant.qemu.cache import CHECKOUT, say
from vagrant.qemu.debian import tools
from vagrant.qemu.errors import VmError, VmLost
from vagrant.qemu.images import Image
from vagrant.qemu.runfolder import end_qemu, run_folder
from vagrant.qemu.signals import held

BOOT_DEADLINE_S = 240.0
POWER_OFF_DEADLINE_S = 60.0
TERM_GRACE_S = 5.0
OUTPUT_KEPT = 200
MEMORY = "2G"
# Folders of the host that the guest may write to; what it writes stays in the guest's memory.
SCRATCH = ("/etc", "/var", "/tmp", "/root", "/home", "/opt", "/srv", "/usr", "/lib")
PANIC = re.compile(r"Kernel panic - not syncing: .*|BUG: .*|general protection fault.*")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the guest said: its command's exit status, and the files that it left by name."""

    status: int
    results: dict[str, str]
    duration_s: float


def check_host() -> None:
    """Raises VmError that names what this machine lacks to run any VM."""
    tools((QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("ip", "iproute2"))
    if not _virtme().exists():
        raise VmError("virtme-ng is not installed in the venv", hint="make vm-setup")


def run(image: Image, command: str, environment: Mapping[str, str], deadline_s: float) -> Outcome:
    """Boot `image` and run a shell command in it as root; its output goes to our stdout and stderr.

    The guest sees the host's files, and what it writes is gone with it, except in $VM_RESULTS.

    Raises:
        VmLost: no verdict within `deadline_s` (boot included), whatever the reason.
        VmError: the VM could not be started.
    """
    check_host()
    _adopt_orphans()
    started = time.monotonic()
    with run_folder() as folder:
        _write_command(folder, command, environment)
        with contextlib.ExitStack() as stack:
            vm = _Vm(image, folder, stack)
            vm.watch(started + deadline_s, deadline_s)
        status = _verdict(folder)
        if status is None:
            raise VmLost(f"the VM ended without a verdict{vm.reason()}", log=vm.console())
        results = {path.name: path.read_text(errors="replace") for path in (folder / "results").iterdir()}
    return Outcome(status, results, time.monotonic() - started)


def shell(image: Image, environment: Mapping[str, str]) -> int:
    """A prompt in the guest on our terminal, until it is left. The status is QEMU's."""
    check_host()
    with run_folder() as folder, contextlib.ExitStack() as stack:
        _write_command(folder, "exec bash", environment)
        guest_shell = folder / "shell"
        guest_shell.write_text(f"#!/bin/bash\nexec {_guest_command(folder)}\n")
        guest_shell.chmod(0o755)
        command = [*_base(image, folder), "--shell", str(guest_shell)]
        with held():
            process = stack.enter_context(subprocess.Popen(command, env=_environment(folder)))
            stack.callback(end_qemu, folder)
            stack.callback(process.terminate)
        return process.wait()


def _adopt_orphans() -> None:
    """prctl(PR_SET_CHILD_SUBREAPER): the children of our dead children become ours."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


class _Vm:
    """The running virtme-ng with the pipes of its guest. The stack ends it."""

    def __init__(self, image: Image, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._console: deque[str] = deque(maxlen=400)
        self._pending = b""
        self._output = b""
        self._panic: str | None = None
        self._selector = stack.enter_context(selectors.DefaultSelector())
        out, err, console = (stack.enter_context(_pipe(self._selector)) for _ in range(3))
        self._sinks = {out.read_fd: sys.stdout.buffer, err.read_fd: sys.stderr.buffer, console.read_fd: None}
        command = [
            *_base(image, folder),
            *_ports(out.write_fd, err.write_fd),
            *("--show-boot-console", "--script-sh", _guest_command(folder)),
        ]
        with held():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=console.write_fd, stderr=console.write_fd,
                pass_fds=(out.write_fd, err.write_fd), env=_environment(folder), start_new_session=True,
            )  # fmt: skip
            stack.callback(self._end)
        for pipe in (out, err, console):
            pipe.close_write()

    def watch(self, deadline: float, deadline_s: float) -> None:
        """Pass the output on until the VM ends. Raises VmLost at a deadline."""
        boot_deadline = min(deadline, time.monotonic() + BOOT_DEADLINE_S)
        power_off_deadline: float | None = None
        while self._process.poll() is None:
            self._pump(0.2)
            now = time.monotonic()
            if power_off_deadline is None and _verdict(self._folder) is not None:
                power_off_deadline = now + POWER_OFF_DEADLINE_S
            if power_off_deadline is not None:
                if now > power_off_deadline:
                    say("the guest gave its verdict and does not power off: ending it")
                    return
            elif now > deadline:
                raise VmLost(f"no verdict within {deadline_s:.0f} s{self.reason()}", log=self.console())
            elif now > boot_deadline and not (self._folder / "booted").exists():
                raise VmLost(f"not booted within {BOOT_DEADLINE_S:.0f} s{self.reason()}", log=self.console())
        while self._pump(0.0):
            pass

    def reason(self) -> str:
        """The kernel's last words, or what the command was at, as the end of a sentence."""
        if self._panic:
            return f": {self._panic}"
        if said := self._output.split(b"\n")[-1].decode(errors="replace").strip():
            return f" (the command was at: {said})"
        last = next((line for line in reversed(self._console) if line.strip()), "")
        return f" (last on its console: {last})" if last else ""

    def console(self) -> str:
        return "\n".join(self._console)

    def _pump(self, timeout_s: float) -> bool:
        """Pass on what the pipes have. Returns whether there was anything."""
        moved = False
        for key, _ in self._selector.select(timeout_s):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fd)
                continue
            moved = True
            sink = self._sinks[key.fd]
            if sink is None:
                self._keep(data)
            else:
                sink.write(data)
                sink.flush()
                self._output = (self._output + data).rstrip(b"\n")[-OUTPUT_KEPT:]
        return moved

    def _keep(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace").rstrip("\r")
            self._console.append(line)
            found = PANIC.search(line)
            if found and self._panic is None:
                self._panic = found.group()

    def _end(self) -> None:
        """End the VM's session: virtme-ng first, which removes its files, then whatever stays."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_GRACE_S)
        end_qemu(self._folder)
        # QEMU became our child when virtme-ng ended. It may not outlive us, not even as a zombie.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self._process.pid, 0)


@dataclasses.dataclass
class _Pipe:
    read_fd: int
    write_fd: int

    def close_write(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1


@contextlib.contextmanager
def _pipe(selector: selectors.BaseSelector) -> Iterator[_Pipe]:
    """A pipe whose reading end the selector watches.

    QEMU opens its outputs anew by /proc/self/fd, which truncates a file and fails on a socket: a
    pipe is the one thing that works whatever our own stdout is.
    """
    pipe = _Pipe(*os.pipe())
    selector.register(pipe.read_fd, selectors.EVENT_READ)
    try:
        yield pipe
    finally:
        pipe.close_write()
        with contextlib.suppress(KeyError):
            selector.unregister(pipe.read_fd)
        os.close(pipe.read_fd)


def _virtme() -> Path:
    return Path(sys.executable).parent / "virtme-run"


def _base(image: Image, folder: Path) -> list[str]:
    """virtme-run with what a script and a shell have in common.

    An emulated VM has one CPU: two of them wait for each other in spin locks and interrupts while the host runs
    something else, and a run takes several times as long.
    """
    fault = kvm_fault(image.vmlinuz)
    say(f"{image.package} {image.version}, " + ("by KVM" if fault is None else f"emulated: KVM is of no use ({fault})"))
    scratch = [path for path in SCRATCH if Path(path).is_dir() and not Path(path).is_symlink()]
    if not any(CHECKOUT.is_relative_to(path) for path in scratch):
        scratch.append(str(CHECKOUT))
    return [
        *(str(_virtme()), "--kimg", str(image.vmlinuz), "--mods", "auto", "--disable-microvm", "--force-9p"),
        *(["--disable-kvm"] if fault else []),
        *("--cpus", "1" if fault else str(min(2, os.cpu_count() or 1)), "--memory", MEMORY, "--rwdir", str(folder)),
        *(option for path in scratch for option in ("--overlay-rwdir", path)),
        # A kernel without block devices does not guess this name of the 9p share.
        *("--kopt", "root=/dev/root"),
        # Each 9p request of an older kernel has buffers of 1 MB: zeroing them takes most of an emulated run.
        *("--kopt", "init_on_alloc=0"),
        *(option for word in ("-pidfile", str(folder / "qemu.pid")) for option in ("--qemu-opt=" + word,)),
    ]


def _ports(out_fd: int, err_fd: int) -> list[str]:
    """Virtio ports for the command's stdout and stderr, apart from the console.

    virtme-ng has such ports, too, but finds them only where udev runs in the guest.
    """
    words = ["-device", "virtio-serial-pci,id=vm"]
    for name, fd in (("stdout", out_fd), ("stderr", err_fd)):
        words += ["-chardev", f"file,id=vm.{name},path=/proc/self/fd/{fd}"]
        words += ["-device", f"virtserialport,bus=vm.0,name=vm.{name},chardev=vm.{name}"]
    return [f"--qemu-opt={word}" for word in words]


def _guest_command(folder: Path) -> str:
    return f"bash {shlex.quote(str(CHECKOUT / 'vagrant' / 'guest' / 'run'))} {shlex.quote(str(folder))}"


def _write_command(folder: Path, command: str, environment: Mapping[str, str]) -> None:
    exports = {**environment, "VM_RESULTS": str(folder / "results")}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    (folder / "command").write_text("\n".join([*lines, f"cd {shlex.quote(str(CHECKOUT))}", command, ""]))


def _environment(folder: Path) -> dict[str, str]:
    """virtme-ng keeps its temporary files in our folder, so that they go with it."""
    return {**os.environ, "TMPDIR": str(folder / "tmp")}


def _verdict(folder: Path) -> int | None:
    try:
        return int((folder / "verdict").read_text())
    except (FileNotFoundError, ValueError):
        return None
