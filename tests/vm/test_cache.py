"""Folders that are built aside, locks, and what killed runs leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vagrant.qemu import cache, machine, runfolder
from vagrant.qemu.errors import VmError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(tmp_path))
    return tmp_path


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with cache.built_aside(tmp_path / "kernel") as aside:
            (aside / "half").touch()
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_good_build_appears_at_once(tmp_path: Path) -> None:
    with cache.built_aside(tmp_path / "kernel") as aside:
        (aside / "vmlinuz").touch()
        assert not (tmp_path / "kernel").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]
    assert (tmp_path / "kernel" / "vmlinuz").exists()


def test_too_little_space_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="MB are free"):
        cache.need_space(tmp_path, 1 << 40, "a test")


def test_a_lock_is_waited_for_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "LOCK_DEADLINE_S", 0.3)
    with (
        cache.locked(tmp_path / "lock", "a test"),
        pytest.raises(VmError, match="another run"),
        cache.locked(tmp_path / "lock", "a test"),
    ):
        pass
    assert "waiting" in capsys.readouterr().err


def test_runs_at_a_time_have_folders_of_their_own() -> None:
    with runfolder.run_folder() as one, runfolder.run_folder() as two:
        assert one != two
        assert one.exists()
    assert not one.exists()
    assert not two.exists()


def test_what_a_killed_run_left_is_swept_with_its_qemu(own_cache: Path) -> None:
    folder = own_cache / "runs" / "vm-killed"
    folder.mkdir(parents=True)
    (folder / "alive").touch()
    # Stands for QEMU: its command line names the folder.
    command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as orphan:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        (folder / "qemu.pid").write_text(str(orphan.pid))
        with runfolder.run_folder():
            assert not folder.exists()
        assert orphan.wait(10) == -9


def test_a_stranger_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "qemu.pid").write_text(str(os.getpid()))
    runfolder.end_qemu(tmp_path)


def test_half_a_verdict_is_none(tmp_path: Path) -> None:
    assert machine._verdict(tmp_path) is None
    (tmp_path / "verdict").write_text("")
    assert machine._verdict(tmp_path) is None
    (tmp_path / "verdict").write_text("7\n")
    assert machine._verdict(tmp_path) == 7
