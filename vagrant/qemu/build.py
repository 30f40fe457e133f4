"""Placeholder."""

from pathlib import Path

from vagrant.qemu.debian import Apt, Package


def built(apt: Apt, package: Package) -> Path:
    raise NotImplementedError
