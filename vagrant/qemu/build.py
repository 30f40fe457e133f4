"""The kernel of vagrant/kernel/: Debian's source, our patches and config, cached by the hash of all three."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vagrant.qemu.cache import CHECKOUT, built_aside, cache_dir, locked, need_space, remove_asides, say
from vagrant.qemu.debian import Apt, Package, run, tools
from vagrant.qemu.errors import VmError
from vagrant.qemu.packages import unpack
from vagrant.qemu.signals import held

RECIPE = CHECKOUT / "vagrant" / "kernel"
BUILD_MB = 6000
TOOLS = (
    *(("make", "make"), ("gcc", "gcc"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc"), ("patch", "patch")),
    *(("pahole", "dwarves"), ("xz", "xz-utils"), ("dpkg-deb", "dpkg")),
)
HEADERS = (("/usr/include/libelf.h", "libelf-dev"), ("/usr/include/zlib.h", "zlib1g-dev"))
# Register tables of graphics cards: a quarter of the source, and read by nothing that we build.
LEFT_OUT = ("--exclude=*/drivers/gpu/drm/amd/include/*",)
KEEP_BUILDS = 2


def built(apt: Apt, package: Package) -> Path:
    """The folder of the built kernel (boot/vmlinuz-…). The first build takes about ten minutes on two cores.

    Raises:
        VmError: a tool is missing, a patch does not apply, an option is not to be had, the compiler fails.
    """
    folder = cache_dir() / "built" / package.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{package.version}-{recipe_hash(package)}"
    with locked(folder / "lock", f"building {package.name}"):
        remove_asides(folder)
        if not target.exists():
            _check_tools()
            need_space(folder, BUILD_MB, f"building {package.name}")
            with built_aside(target) as aside:
                _build(apt, package, aside, folder / "build.log")
            _forget_old(folder)
    return target


def recipe_hash(package: Package) -> str:
    """Changes when the source version, the config or a patch changes."""
    parts = [package.version.encode(), (RECIPE / "config").read_bytes()]
    parts += [patch.read_bytes() for patch in _patches()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _patches() -> list[Path]:
    return sorted((RECIPE / "patches").glob("*.patch"))


def _check_tools() -> None:
    missing = [package for header, package in HEADERS if not Path(header).exists()]
    if missing:
        raise VmError(f"missing on this machine: {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}")
    tools(*TOOLS)


def _build(apt: Apt, package: Package, aside: Path, log: Path) -> None:
    started = time.monotonic()
    work = aside / "work"
    work.mkdir()
    source = _source(apt, package, work)
    for patch in _patches():
        run(["patch", "-p1", "--forward", "--batch", "-d", source, "-i", patch])
    _configure(source)
    say(f"building {package.name} {package.version} with {len(_patches())} patches; the log is {log}")
    _make(source, log)
    _install(source, aside)
    shutil.rmtree(work)
    say(f"built in {time.monotonic() - started:.0f} s")


def _source(apt: Apt, package: Package, work: Path) -> Path:
    """The unpacked source tree."""
    archive = apt.download(package, work)
    unpack(archive, work)
    archive.unlink()
    tarball = next((work / "usr" / "src").glob("*.tar.xz"))
    run(["tar", "-xf", tarball, "-C", work, *LEFT_OUT])
    return work / tarball.name.removesuffix(".tar.xz")


def _configure(source: Path) -> None:
    """tinyconfig and our fragment. Raises VmError when the kernel did not take an option."""
    run(["make", "-C", source, "tinyconfig"])
    run(["scripts/kconfig/merge_config.sh", "-m", ".config", RECIPE / "config"], cwd=source)
    run(["make", "-C", source, "olddefconfig"])
    made = set((source / ".config").read_text().splitlines())
    wanted = [line for line in (RECIPE / "config").read_text().splitlines() if line.startswith("CONFIG_")]
    refused = [line for line in wanted if line not in made]
    if refused:
        raise VmError(
            f"the kernel's configuration did not take {', '.join(refused)}", hint="correct vagrant/kernel/config"
        )


def _make(source: Path, log: Path) -> None:
    """Compile, with the compiler's output in `log`; ended with all its children when we are."""
    command = ["nice", "-n", "10", "make", f"-j{os.cpu_count()}", "bzImage"]
    with (
        log.open("w") as output,
        _session(command, source, output.fileno()) as process,
    ):
        status = process.wait()
    if status:
        text = log.read_text(errors="replace")
        raise VmError(f"the kernel did not build; the log is {log}", log=_errors(text))


def _errors(log: str) -> str:
    lines = log.splitlines()
    return "\n".join([line for line in lines if "error:" in line or "Error " in line][-15:] or lines[-15:])


@contextlib.contextmanager
def _session(command: Sequence[str], cwd: Path, output: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, which is killed as a whole at the end of the block."""
    with contextlib.ExitStack() as stack:
        with held():
            process = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            stack.callback(_kill, process)
        yield process


def _kill(leader: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def _install(source: Path, into: Path) -> None:
    release = run(["make", "-s", "-C", source, "kernelrelease"]).strip()
    boot = into / "boot"
    boot.mkdir()
    shutil.copy(source / "arch/x86/boot/bzImage", boot / f"vmlinuz-{release}")
    shutil.copy(source / ".config", boot / f"config-{release}")
    shutil.copy(source / "System.map", boot / f"System.map-{release}")


def _forget_old(folder: Path) -> None:
    """Keep the newest builds only. Under the lock of `folder`."""
    builds = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in builds[:-KEEP_BUILDS]:
        shutil.rmtree(path)
