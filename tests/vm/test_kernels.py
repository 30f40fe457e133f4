"""The table of kernels, and the recipe of the patched one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vagrant.guest.proofs import PROOFS
from vagrant.qemu import build, kernels
from vagrant.qemu.debian import Package
from vagrant.qemu.errors import VmError


def test_every_row_loads_and_expects_known_proofs() -> None:
    table = kernels.load()
    assert {"debian-5.10", "debian-6.1", "debian-6.12", "debian-7", "autolowat"} <= set(table)
    for kernel in table.values():
        assert set(kernel.expect) <= set(PROOFS), kernel.name
        assert kernel.kernel_tests in ("require", "skip"), kernel.name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(VmError) as caught:
        kernels.find("debian-2.2")
    assert caught.value.exit_code == 100
    assert "debian-6.1" in (caught.value.hint or "")


def test_a_broken_table_is_an_error_of_ours(tmp_path: Path) -> None:
    table = tmp_path / "kernels.toml"
    table.write_text('[kernels.x]\nsuite = "bookworm"\npackage = "p"\nno_such_column = 1\n')
    with pytest.raises(VmError):
        kernels.load(table)


def test_the_cache_key_follows_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / "config").write_text("CONFIG_A=y\n")
    monkeypatch.setattr(build, "RECIPE", tmp_path)
    package = Package("linux-source-6.12", "6.12.1-1")
    keys = {build.recipe_hash(package), build.recipe_hash(Package("linux-source-6.12", "6.12.2-1"))}
    (tmp_path / "config").write_text("CONFIG_B=y\n")
    keys.add(build.recipe_hash(package))
    (tmp_path / "patches" / "0001.patch").write_text("a patch")
    keys.add(build.recipe_hash(package))
    assert len(keys) == 4
