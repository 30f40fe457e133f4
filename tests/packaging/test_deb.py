"""`make deb` with the build tools of this Debian: what the package has, and that groff understands its pages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.unit.test_cli import VERBS

CHECKOUT = Path(__file__).parents[2]
LIMIT_S = 300
PACKAGE = "usr/lib/python3/dist-packages/reuseport_tool"
FILES = (
    "usr/bin/reuseport-tool",
    f"{PACKAGE}/cli/main.py",
    f"{PACKAGE}/bpf/abi.h",
    "usr/lib/systemd/system/reuseport-tool-follow@.service",
    "usr/lib/systemd/system/reuseport-tool-metrics.timer",
    "usr/share/bash-completion/completions/reuseport-tool",
    "usr/share/zsh/vendor-completions/_reuseport-tool",
    "usr/share/fish/vendor_completions.d/reuseport-tool.fish",
    "usr/share/doc/reuseport-tool/prometheus/reuseport-tool.rules.yml",
)
HEADS = ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO")
NEEDS = ("python3-bpfcc", "python3-click (>= 8.1.3)", "python3-pyroute2 (>= 0.7.2)", "python3-rich", "python3-scapy")


def test_the_package(tmp_path: Path) -> None:
    """One test, so that the package is built once."""
    folder = tmp_path / "deb"
    subprocess.run(["make", "-s", "deb", f"DEB={folder}"], cwd=CHECKOUT, check=True, timeout=LIMIT_S)
    (package,) = folder.glob("*.deb")
    needs_what_debian_has(package)
    unpacked = tmp_path / "unpacked"
    subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
    assert not [name for name in FILES if not (unpacked / name).is_file()]
    every_verb_has_a_page(unpacked / "usr/share/man/man1")


def needs_what_debian_has(package: Path) -> None:
    depends = subprocess.run(["dpkg-deb", "--field", package, "Depends"], capture_output=True, text=True, check=True)
    assert all(need in depends.stdout for need in NEEDS), depends.stdout
    assert "msgspec" not in depends.stdout


def every_verb_has_a_page(folder: Path) -> None:
    """And groff understands it."""
    pages = {path.name.removesuffix(".1.gz"): path for path in folder.iterdir()}
    assert {"-".join(("reuseport-tool", *verb)) for verb in VERBS} <= pages.keys()
    for name, path in pages.items():
        done = subprocess.run(
            ["man", "--warnings", "--local-file", path],
            capture_output=True,
            text=True,
            env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
            check=True,
        )
        assert done.stderr == "", name
        assert not [head for head in HEADS if f"\n{head}\n" not in done.stdout], name
