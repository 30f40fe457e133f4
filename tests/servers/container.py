"""A systemd of its own: systemd-nspawn on an overlay of a root, by default this machine's, in the caller's namespace.

What it writes is gone with it. A process inside is seen, and signalled, from outside, but with another number.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.waiting import wait_until

_CHECKOUT = Path(__file__).parents[2]
_START_S = 60.0
_COMMAND_S = 60.0
_END_S = 60.0
_TARGET = """
[Unit]
Requires=basic.target
After=basic.target
AllowIsolate=yes
"""


class Container:
    """Run commands in it; `root` is its file system. `shared` is seen inside at the same place, read-only."""

    def __init__(self, root: Path, name: str, shared: tuple[Path, ...]) -> None:
        self.root = root
        self._name = name
        self._shared = shared
        self._nspawn: subprocess.Popen[bytes] | None = None

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def start(self) -> None:
        """Boot it to a target of its own, without this machine's services."""
        self.write("/etc/systemd/system/test.target", _TARGET)
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--capability=all"),
                *("--system-call-filter=bpf perf_event_open pidfd_getfd", "--network-namespace-path=/proc/self/ns/net"),
                *(f"--directory={self.root}", f"--machine={self._name}", "--link-journal=no"),
                *(f"--bind-ro={path}" for path in self._shared),
                "--console=read-only",
                # This machine's firewall would be loaded into the caller's namespace.
                *("systemd.unit=test.target", "systemd.mask=nftables.service"),
                # There is no network to wait for.
                "systemd.mask=systemd-networkd-wait-online.service",
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.root.parent / "console").open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"},
        )
        assert wait_until(self._is_up, _START_S), (self.root.parent / "console").read_text(errors="replace")

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, (self.root.parent / "console").read_text(errors="replace")
        return self._init() is not None and self.run("systemctl", "is-active", "--quiet", "test.target").returncode == 0

    def _init(self) -> int | None:
        """The pid of its systemd."""
        assert self._nspawn is not None
        try:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        except FileNotFoundError:  # it has ended
            return None
        return int(children[0]) if children else None

    def inside(self, path: str) -> str:
        """A path as the running container sees it, with what is mounted there."""
        return f"/proc/{self._init()}/root{path}"

    def run(self, *command: object, limit_s: float = _COMMAND_S) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self._init()), "--mount", "--uts", "--ipc", "--pid", "--root"]
        words = [
            *enter,
            "/usr/bin/env",
            "--chdir=/",
            "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin",
            *map(str, command),
        ]
        return subprocess.run(words, capture_output=True, text=True, timeout=limit_s, check=False)

    def ok(self, *command: object, limit_s: float = _COMMAND_S) -> str:
        done = self.run(*command, limit_s=limit_s)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self._journal()}"
        return done.stdout

    def _journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--lines", 30, "--output", "cat").stdout

    def stop(self) -> None:
        if self._nspawn is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._init():
                self.run("systemctl", "--no-block", "poweroff")
            self._nspawn.wait(_END_S)
        self._nspawn.kill()
        self._nspawn.wait()
        self._nspawn = None


@contextlib.contextmanager
def container(folder: Path, name: str, base: Path | None = None) -> Iterator[Container]:
    """A container that is not started yet. On another `base` it does not see the checkout and the venv."""
    with ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", name, folder], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        for part in ("upper", "work", "root"):
            (folder / part).mkdir()
        root = folder / "root"
        # Two at a time must not have one name: systemd-nspawn mounts a folder by it.
        name = f"{name}-{os.getpid()}"
        options = f"lowerdir={base or '/'},upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, name, root], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", root], check=True)
        (root / "etc" / "machine-id").unlink(missing_ok=True)
        made = Container(root, name, () if base else (_CHECKOUT, Path(sys.prefix)))
        stack.callback(made.stop)
        yield made
