"""The checkout as other users can read it: from a clone below /root, or below a folder of mode 0700, they cannot."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


class Readable:
    """Where it is; a context manager changes that for as long as it is open."""

    def __init__(self) -> None:
        self._place = CHECKOUT

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, there is a mount of the checkout that everybody can reach, or a copy, where it is needed."""
        if os.geteuid() != 0 or all(_opens(folder) for folder in (CHECKOUT / "tests", CHECKOUT, *CHECKOUT.parents)):
            yield
            return
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        folder.chmod(0o755)
        place = folder / "checkout"
        place.mkdir()
        with _mounted(place) if _opens(CHECKOUT / "tests") and _opens(CHECKOUT) else _copied(place):
            self._place = place
            try:
                yield
            finally:
                self._place = CHECKOUT
        folder.rmdir()

    def command(self, words: Sequence[object]) -> list[str]:
        """A command of the checkout as it is run by a user who may not read the checkout itself."""
        moved = [str(word).replace(str(CHECKOUT), str(self._place)) for word in words]
        return ["env", f"--chdir={self._place}", *moved]


def _opens(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o001)


@contextlib.contextmanager
def _mounted(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", CHECKOUT, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()  # never recursively: were it still mounted, that would be the checkout


@contextlib.contextmanager
def _copied(place: Path) -> Iterator[None]:
    """For a checkout that was made with a umask of 077."""
    try:
        for name in ("reuseport_tool", "bpf", "tests", ".venv"):
            subprocess.run(["cp", "-a", CHECKOUT / name, place], check=True)
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        yield
    finally:
        shutil.rmtree(place)


READABLE = Readable()
