"""Files that the operator names, in folders where somebody else may have put something in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reuseport_tool.errors import Conflict
from reuseport_tool.kernel import named_files


def write(file: Path) -> None:
    with open(named_files.open_for_writing(file, os.O_APPEND), "wb") as opened:
        opened.write(b"new")


PLANTED: dict[str, Callable[[Path, Path], None]] = {
    "a link": lambda file, precious: file.symlink_to(precious),
    "a dangling link": lambda file, precious: file.symlink_to(precious.parent / "made"),
    "a pipe": lambda file, _: os.mkfifo(file),
    "a second name of a file": lambda file, precious: file.hardlink_to(precious),
}


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770], ids=oct)
@pytest.mark.parametrize("what", PLANTED)
def test_what_others_can_plant_is_refused(tmp_path: Path, what: str, mode: int) -> None:
    (precious := tmp_path / "precious").write_text("precious")
    (folder := tmp_path / "open").mkdir()
    folder.chmod(mode)
    PLANTED[what](folder / "file", precious)
    with pytest.raises(Conflict, match="that others can write to"):
        write(folder / "file")
    assert precious.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["open", "precious"]


@pytest.mark.parametrize("mode", [0o1777, 0o755], ids=oct)
def test_a_plain_file_is_made_and_continued(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    write(tmp_path / "file")
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "newnew"


def test_a_link_of_ours_in_a_folder_of_ours_is_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write(tmp_path / "link")
    assert (tmp_path / "file").read_text() == "new"
    write(Path("/dev/null"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "file").write_text("theirs")
    os.chown(tmp_path / "file", 65534, 65534)
    with pytest.raises(Conflict, match="uid 65534"):
        write(tmp_path / "file")
    os.chown(tmp_path, 65534, 65534)  # in their own folder they only harm themselves
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "theirsnew"
