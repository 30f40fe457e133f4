"""Debian packages of any suite, by an apt configuration of our own: the machine's apt stays untouched."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vagrant.qemu.cache import cache_dir, locked, need_space, say
from vagrant.qemu.errors import VmError, from_os

UPDATE_AFTER_S = 24 * 3600
LISTS_MB = 200
KEYRINGS = ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Package:
    """A version of a binary package that can be downloaded."""

    name: str
    version: str


def tools(*names: tuple[str, str]) -> None:
    """Raises VmError that names the Debian package of the first (command, package) that is missing."""
    missing = sorted({package for command, package in names if shutil.which(command) is None})
    if missing:
        raise VmError(f"missing on this machine: {', '.join(missing)}", hint=f"apt-get install {' '.join(missing)}")


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command of the host, return its stdout. Raises VmError with the end of its stderr."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise VmError(f"{error.filename} is not installed") from error
    if done.returncode != 0:
        raise failure(Path(command[0]).name, done.stderr)
    return done.stdout


def failure(what: str, stderr: str) -> VmError:
    """The error of a command of the host that failed, by what it said last."""
    if os.strerror(errno.ENOSPC) in stderr:
        return from_os(OSError(errno.ENOSPC, f"{what} could not write"))
    last = stderr.strip().splitlines()[-1:] or ["no message"]
    return VmError(f"{what} failed: {last[0]}", log=stderr)


class Apt:
    """apt for one suite, with its sources, lists and status in a folder of the cache."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.dir = cache_dir() / "apt" / suite
        self._env = {"APT_CONFIG": str(self.dir / "apt.conf"), "LC_ALL": "C"}

    def refresh(self) -> None:
        """Update the lists when they are older than a day. Old lists and no network are good enough."""
        tools(("apt-get", "apt"), ("dpkg-deb", "dpkg"))
        self.dir.mkdir(parents=True, exist_ok=True)
        stamp = self.dir / "updated"
        with locked(self.dir / "lock", f"the package lists of {self.suite}"):
            if stamp.exists() and time.time() - stamp.stat().st_mtime < UPDATE_AFTER_S:
                return
            # On a disk that fills meanwhile apt-get may hang.
            need_space(self.dir, LISTS_MB, f"reading the package lists of {self.suite}")
            self._configure()
            try:
                run(["apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update"], env=self._env)
            except VmError as error:
                if not stamp.exists():
                    raise
                say(f"using the package lists of earlier: {error.message}")
                return
            stamp.touch()

    def resolve(self, name: str) -> Package:
        """The newest version of a package; a meta-package is followed to the image that it depends on."""
        for _ in range(3):
            record = self._show(name)
            image = re.search(r"^Depends:.*?\b(linux-(?:image|source)-\d[^ ,]*)", record, re.MULTILINE)
            if re.match(r"linux-(image|source)-\d", name) or image is None:
                break
            name = image.group(1)
        version = re.search(r"^Version: (.+)$", record, re.MULTILINE)
        assert version is not None
        return Package(name, version.group(1))

    def parts(self, package: Package) -> list[Package]:
        """The package, and those of the same version that newer kernels are split into."""
        depends = re.search(r"^Depends: (.+)$", self._show(package.name), re.MULTILINE)
        found = re.findall(r"\b(linux-(?:binary|modules)-\d\S*) \(= ([^)]+)\)", depends.group(1) if depends else "")
        return [package, *(Package(name, version) for name, version in found)]

    def download(self, package: Package, into: Path) -> Path:
        """The package file, in the folder `into`."""
        say(f"fetching {package.name} {package.version}")
        run(["apt-get", "-qq", "download", f"{package.name}={package.version}"], cwd=into, env=self._env)
        return next(into.glob("*.deb"))

    def _show(self, name: str) -> str:
        try:
            record = run(["apt-cache", "--no-all-versions", "show", name], env=self._env)
        except VmError as error:
            raise VmError(
                f"Debian's {self.suite} has no package {name} any more", hint="choose another one in kernels.toml"
            ) from error
        if not record.strip():
            raise VmError(f"Debian's {self.suite} has no package {name}", hint="choose another one in kernels.toml")
        return record

    def _configure(self) -> None:
        for folder in ("parts", "preferences", "lists/partial", "archives/partial"):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        (self.dir / "status").touch()
        (self.dir / "sources.list").write_text(_sources(self.suite))
        # Hooks of the machine's apt configuration must not run, its network settings must apply.
        network = run(["apt-config", "dump", "Acquire"])
        (self.dir / "apt.conf").write_text(_APT_CONF.format(dir=self.dir) + network)


_APT_CONF = """\
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "{dir}/parts";
Dir::Etc::SourceList "{dir}/sources.list";
Dir::Etc::SourceParts "{dir}/parts";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{dir}/preferences";
Dir::State "{dir}";
Dir::State::Lists "{dir}/lists";
Dir::State::Status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::Archives "{dir}/archives";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
"""


def _sources(suite: str) -> str:
    """Lines for sources.list, with the mirrors that the machine itself uses."""
    mirrors = _mirrors()
    release = suite.removesuffix("-backports")
    wanted = [("Debian", suite)]
    if suite == release:
        wanted.append(("Debian-Security", f"{suite}-security"))
    keyring = next(
        (Path("/usr/share/keyrings") / k for k in KEYRINGS if (Path("/usr/share/keyrings") / k).exists()), None
    )
    if keyring is None:
        raise VmError("Debian's archive keys are missing", hint="apt-get install debian-archive-keyring")
    lines = [f"deb [signed-by={keyring}] {mirrors[label]} {name} main" for label, name in wanted if label in mirrors]
    return "\n".join(lines) + "\n"


def _mirrors() -> dict[str, str]:
    """URI by label ("Debian", "Debian-Security") of the machine's own package sources."""
    shown = run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"])
    mirrors: dict[str, str] = {}
    for line in shown.splitlines():
        label, _, uri = line.partition(" ")
        mirrors.setdefault(label, uri)
    if "Debian" not in mirrors:
        raise VmError(
            "the machine's apt knows no Debian mirror",
            hint="the kernels are Debian packages: on Debian run apt-get update once, elsewhere use vagrant",
        )
    return mirrors
