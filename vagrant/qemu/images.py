"""A bootable kernel of a Debian package: fetched once, unpacked, cached by version."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from vagrant.qemu import build
from vagrant.qemu.cache import built_aside, cache_dir, locked, need_space, remove_asides
from vagrant.qemu.debian import Apt, Package, run, tools
from vagrant.qemu.errors import VmError
from vagrant.qemu.kernels import Kernel
from vagrant.qemu.packages import unpack

UNPACK_MB = 900
# Drivers that no VM has are a good half of the package.
LEFT_OUT = ("drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/infiniband", "drivers/staging", "sound")


@dataclass(frozen=True)
class Image:
    """A kernel to boot: `vmlinuz`, and what it was made of for the reader."""

    vmlinuz: Path
    package: str
    version: str


def image(kernel: Kernel) -> Image:
    """The bootable image of a row of the table, fetched or built when the cache has none.

    Raises:
        VmError: the package cannot be had, does not unpack, or the build fails.
    """
    apt = Apt(kernel.suite)
    apt.refresh()
    package = apt.resolve(kernel.package)
    if kernel.source:
        return Image(_vmlinuz(build.built(apt, package)), package.name, package.version)
    return Image(_unpacked(apt, package), package.name, package.version)


def _unpacked(apt: Apt, package: Package) -> Path:
    tools(("dpkg-deb", "dpkg"), ("depmod", "kmod"))
    folder = cache_dir() / "kernels" / package.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / package.version
    with locked(folder / "lock", package.name):
        remove_asides(folder)
        if not target.exists():
            need_space(folder, UNPACK_MB, f"unpacking {package.name}")
            with built_aside(target) as aside:
                _unpack(apt, package, aside)
    return _vmlinuz(target)


def _unpack(apt: Apt, package: Package, into: Path) -> None:
    for part in apt.parts(package):
        with tempfile.TemporaryDirectory(dir=into) as folder:
            archive = apt.download(part, Path(folder))
            unpack(archive, into, tuple(f"--exclude=*/kernel/{path}" for path in LEFT_OUT))
    # Packages of newer suites have usr/lib/modules only, the newest also the kernel in there.
    if not (into / "lib").exists():
        (into / "lib").symlink_to("usr/lib")
    for kernel in into.glob("usr/lib/modules/*/vmlinuz"):
        (into / "boot").mkdir(exist_ok=True)
        (into / "boot" / f"vmlinuz-{kernel.parent.name}").symlink_to(Path("..") / kernel.relative_to(into))
    run(["depmod", "-a", "-b", into, _vmlinuz(into).name.removeprefix("vmlinuz-")])


def _vmlinuz(folder: Path) -> Path:
    found = sorted((folder / "boot").glob("vmlinuz-*"))
    if not found:
        raise VmError(f"no kernel in {folder}", hint="the package is not an image: correct kernels.toml")
    return found[0]
