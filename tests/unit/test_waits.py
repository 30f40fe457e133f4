"""Waits for somebody who never comes: each has an end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reuseport_tool.errors import NotFound, ProgramRejected
from reuseport_tool.kernel import commands, compiler, folders, notify
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.process_tree import ProcessTree
from reuseport_tool.kernel.processes import identity
from reuseport_tool.waiting import wait_until


def test_a_journald_that_accepts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect(2) to a full queue waits for ever by default."""
    place = str(tmp_path / "stdout")
    monkeypatch.setattr(commands, "_JOURNAL", place)
    monkeypatch.setattr(commands, "_JOURNAL_S", 0.2)
    with socket.socket(socket.AF_UNIX) as journald, socket.socket(socket.AF_UNIX) as first:
        journald.bind(place)
        journald.listen(0)
        first.connect(place)
        with pytest.raises(OSError, match=r"unavailable|timed out"):
            commands._journal("web")


def test_a_name_cannot_add_fields_to_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "stdout")
    monkeypatch.setattr(commands, "_JOURNAL", place)
    with socket.socket(socket.AF_UNIX) as journald:
        journald.bind(place)
        journald.listen()
        with commands._journal("web\nother.service") as stream, journald.accept()[0] as accepted:
            assert accepted.recv(4096).split(b"\n")[:2] == [b"web\\nother.service", b""]
            assert stream.getblocking()


def test_a_manager_that_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An @ is special at the beginning only: a folder may have one in its name."""
    folder = tmp_path / "user@1000"
    folder.mkdir()
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    monkeypatch.setattr(notify, "_FULL_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        notify.notify("READY=1", "STATUS=here")
        assert manager.recv(100) == b"READY=1\nSTATUS=here"
        sender = threading.Thread(target=lambda: [notify.notify("WATCHDOG=1") for _ in range(20)], daemon=True)
        sender.start()
        sender.join(20)
        assert not sender.is_alive()


def test_a_compiler_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(**_: object) -> None:
        time.sleep(60)

    forked: list[int] = []
    fork = os.fork

    def remembered() -> int:
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", remembered)
    monkeypatch.setattr(compiler, "_LONGEST_S", 0.2)
    monkeypatch.setattr(compiler, "_bcc", lambda: endless)
    with pytest.raises(ProgramRejected, match="does not compile within"):
        compiler.compile_apart("policy.c", b"", {})
    with pytest.raises(ChildProcessError):
        os.waitpid(forked[0], os.WNOHANG)


def test_a_lock_below_a_folder_that_is_gone(tmp_path: Path) -> None:
    place = Place(tmp_path / "gone") / "group"
    with pytest.raises(NotFound, match="is gone"), folders.lock(place, lambda _: False):
        pass


FIRST_THREAD_ENDS = """
import ctypes, sys, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_ended_still_runs() -> None:
    """The kernel shows it as a zombie, while its other threads serve."""
    process = subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        stat = Path(f"/proc/{process.pid}/stat")
        assert wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", 20)
        found = identity(process.pid)
        assert found is not None
        assert found.runs()
        assert ProcessTree.read().identity(process.pid) == found
        process.kill()
        assert wait_until(lambda: not found.runs(), 20)
        assert ProcessTree.read().identity(process.pid) is None
    finally:
        process.kill()
        process.communicate()
