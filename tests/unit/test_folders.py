"""Folders that only we can change: what is trusted, made, removed, and refused. Without root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reuseport_tool.errors import Conflict
from reuseport_tool.kernel import folders
from reuseport_tool.kernel.folders import Foreign, Place


@pytest.fixture
def base(tmp_path: Path) -> Place:
    return Place(tmp_path)


def victim(tmp_path: Path) -> Path:
    made = tmp_path / "victim"
    made.mkdir(mode=0o700)
    (made / "precious").write_text("precious")
    return made


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_folders_are_made_closed(base: Place, umask: int) -> None:
    before = os.umask(umask)
    try:
        (base / "a" / "b").make()
    finally:
        os.umask(before)
    for place in (base / "a", base / "a" / "b"):
        info = place.info()
        assert info is not None
        assert info.st_mode & 0o777 == 0o700


def test_a_folder_that_is_closed_to_its_owner(base: Place) -> None:
    """What an older version made with such a umask is named as what it is. Root may look into it all the same."""
    (base / "a").make()
    os.chmod(base.base / "a", 0)
    as_user = "import os; os.setresuid(4242, 4242, 4242); " if os.geteuid() == 0 else ""
    script = f"""
import os, pathlib
from reuseport_tool.errors import Conflict
from reuseport_tool.kernel.folders import Place
{as_user}
try:
    (Place(pathlib.Path(".")) / "a").names()
except Conflict as error:
    print(error.message, error.hint)
"""
    if as_user:
        for folder in (base.base, base.base / "a"):
            os.chown(folder, 4242, 4242)
    done = subprocess.run([sys.executable, "-c", script], cwd=base.base, capture_output=True, text=True, check=True)
    assert "has the mode 0000, which is closed to us" in done.stdout
    assert "chmod 0700" in done.stdout


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o707, 0o750, 0o755, 0o777])
def test_a_folder_open_to_others_is_foreign(base: Place, tmp_path: Path, mode: int) -> None:
    (base / "a" / "b").make()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(Foreign, match="open to others"):
        (base / "a" / "b").names()
    with pytest.raises(Foreign):
        (base / "a" / "b").remove()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_base_that_anybody_can_rename_in_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(Foreign, match="anybody can rename"):
        (Place(tmp_path) / "a").make()
    tmp_path.chmod(0o1777)
    (Place(tmp_path) / "a").make()


@pytest.mark.parametrize("at", ["a", "a/b"])
def test_no_link_is_followed(base: Place, tmp_path: Path, at: str) -> None:
    target = victim(tmp_path)
    (base / "a").make()
    if at == "a":
        (tmp_path / "a").rmdir()
    (tmp_path / at).symlink_to(target)
    place = base / "a" / "b"
    for act in (place.make, (place / "x").make):
        with pytest.raises(Conflict, match="not a folder"):
            act()
    with pytest.raises(Conflict):
        (place / "precious").remove()
    with pytest.raises(Conflict), (place / "precious").file():
        pass
    assert (target / "precious").read_text() == "precious"


def test_remove_takes_links_and_not_what_they_lead_to(base: Place, tmp_path: Path) -> None:
    target = victim(tmp_path)
    (base / "a" / "b").make()
    (tmp_path / "a" / "b" / "link").symlink_to(target)
    (tmp_path / "a" / "file").write_text("")
    (base / "a").remove()
    assert not (tmp_path / "a").exists()
    assert (target / "precious").exists()
    (base / "a").remove()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_what_is_no_name(base: Place, name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        base / name


def test_the_base_stays(base: Place, tmp_path: Path) -> None:
    with folders.lock(base / "a" / "b", lambda _holder: False):
        assert folders.is_locked(base / "a" / "b")
        with pytest.raises(Conflict, match=f"process {os.getpid()}"):
            folders.lock(base / "a" / "b", lambda _holder: False).__enter__()
    assert tmp_path.is_dir()
    assert not (tmp_path / "a").exists()


def test_a_link_is_no_file(base: Place, tmp_path: Path) -> None:
    (base / "a").make()
    (tmp_path / "a" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Conflict), (base / "a" / "link").file():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have another user")
def test_another_users_folder_is_named(base: Place, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "a").mkdir(mode=0o700)
    subprocess.run(["chown", "65534", tmp_path / "a"], check=True)
    with pytest.raises(Foreign, match=r"uid 65534\), not to user root \(uid 0\)"):
        (base / "a").make()
