"""Debian package files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vagrant.qemu.debian import failure


def unpack(archive: Path, into: Path, tar_options: tuple[str, ...] = ()) -> None:
    """The files of a Debian package, without those that the options of tar leave out."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as reader:
        tar = subprocess.run(
            ["tar", "-x", "-C", into, *tar_options],
            stdin=reader.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if reader.returncode or tar.returncode:
        raise failure(f"unpacking {archive.name}", tar.stderr)
