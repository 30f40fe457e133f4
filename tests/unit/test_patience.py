"""What is told while something goes on never waits for a reader who has stopped reading."""

from __future__ import annotations

import os
import pty
import signal
import socket
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from reuseport_tool import patience
from reuseport_tool.cli.show import streams
from reuseport_tool.kernel.commands import Commands
from reuseport_tool.patience import Patient
from reuseport_tool.waiting import wait_until

Ends = tuple[int, int]
DEADLINE_S = 60
MUCH = b"x" * (1 << 22)


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """What waits for ever fails."""

    def end(*_: object) -> NoReturn:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """A descriptor to read from, and one to write to."""
    if request.param == "pipe":
        made = os.pipe()
    elif request.param == "terminal":
        made = pty.openpty()
    else:
        made = tuple(end.detach() for end in socket.socketpair())  # type: ignore[assignment]
    yield made
    for fd in made:
        os.close(fd)


def test_without_a_reader_it_is_dropped_after_a_while(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.05)
    with Patient(ends[1]) as stream:
        assert stream.write(MUCH) == len(MUCH)
        monkeypatch.setattr(patience, "_AGAIN_S", 1000)  # not another time is waited for
        assert stream.write(MUCH) == len(MUCH)


def test_what_is_written_after_the_reader_came_back_arrives(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.05)
    with Patient(ends[1]) as stream:
        stream.write(MUCH)
        os.set_blocking(ends[0], False)
        seen = b""

        def arrived() -> bool:
            nonlocal seen
            stream.write(b"again")
            try:
                seen = (seen + os.read(ends[0], 1 << 20))[-100:]
            except BlockingIOError:
                return False
            return b"again" in seen

        assert wait_until(arrived, 30)


def test_others_with_the_same_opening_still_wait(ends: Ends) -> None:
    with Patient(ends[1]) as stream:
        stream.write(b"x")
        assert os.get_blocking(ends[1])


def test_a_stopped_terminal() -> None:
    """Ctrl-S."""
    _, slave = pty.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    with Patient(slave) as stream:
        stream.write(b"a word")


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null"])
def test_what_cannot_be_written_is_dropped(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    with Patient(fd) as stream:
        assert stream.write(b"lost") == 4
    os.close(fd)


def test_a_file_is_written_where_the_caller_is(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"before ")
    with Patient(fd) as stream:
        stream.write(b"between ")
    os.write(fd, b"after")
    os.close(fd)
    assert (tmp_path / "log").read_text() == "before between after"


def test_a_hook_that_says_much_to_a_full_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is for whoever reads stderr; if nobody does, the reload goes on."""
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        with streams.messages() as stderr, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stderr)
            Commands(wait_until, (1024, 1024)).run("head -c 1000000 /dev/zero", DEADLINE_S, "the hook")
    finally:
        os.dup2(kept, 2)
        for fd in (kept, reader, writer):
            os.close(fd)


@pytest.mark.parametrize("kind", [Patient, streams._Message])
def test_what_was_not_made_as_a_whole_can_be_closed(kind: type[Patient] | type[streams._Message]) -> None:
    """Python closes what it throws away, and shows what that raises: a descriptor for its copy was lacking."""
    kind.__new__(kind).close()
