"""The checkout as other users can read it: from a clone below /root, or below a folder of mode 0700, they cannot."""

from __future__ import annotations

import contextlib
import os
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
        """Inside, there is a mount of the checkout that everybody can reach, where it is needed."""
        if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in CHECKOUT.parents):
            yield
            return
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        folder.chmod(0o755)
        place = folder / "checkout"
        place.mkdir()
        subprocess.run(["mount", "--bind", CHECKOUT, place], check=True)
        self._place = place
        try:
            yield
        finally:
            self._place = CHECKOUT
            subprocess.run(["umount", "--lazy", place], check=True)
            place.rmdir()  # never recursively: were it still mounted, that would be the checkout
            folder.rmdir()

    def command(self, words: Sequence[object]) -> list[str]:
        """A command of the checkout as it is run by a user who may not read the checkout itself."""
        moved = [str(word).replace(str(CHECKOUT), str(self._place)) for word in words]
        return ["env", f"--chdir={self._place}", *moved]


READABLE = Readable()
