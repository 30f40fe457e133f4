"""A follower over a kernel in memory: which listeners it registers, what it tells, when it looks again."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict
from reuseport_tool.follow import run
from reuseport_tool.follow.wakeups import Wakeups
from reuseport_tool.group import attach, detach, journals, places
from reuseport_tool.group.policy import ChosenPolicy
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.listen_events import ListenEvent
from reuseport_tool.models import Endpoint, FollowEvent, Happening, Protocol
from reuseport_tool.waiting import wait_until
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import WEB
from tests.unit.group.fake.sockets import Sockets

ENDS_S = 30.0


@dataclass
class Resets:
    """Stands for the count of resets: the groups it is shown for."""

    shown: set[Endpoint] = field(default_factory=set)

    def show(self, group: Endpoint, _folder: Place) -> None:
        self.shown.add(group)


@dataclass(kw_only=True)
class Scene:
    kernel: Kernel
    follower: run._Follower
    wakeups: Wakeups
    resets: Resets
    told: list[FollowEvent]

    def news(self) -> list[tuple[Happening, int | None]]:
        """What was told since the last call."""
        found = [(event.event, event.cookie) for event in self.told]
        self.told.clear()
        return found

    def listens(self, pid: int, **how: object) -> int:
        """A new listener, of which an event tells."""
        cookie = self.kernel.listen(pid, **how)
        self.follower.look([ListenEvent(time_ns=time.monotonic_ns(), pid=pid, port=80)], False)
        return cookie


@pytest.fixture
def scene(kernel: Kernel) -> Iterator[Scene]:
    told: list[FollowEvent] = []
    resets = Resets()
    with (
        Wakeups() as wakeups,
        ChosenPolicy(None, None) as chosen,
        Sockets(kernel).listeners_of(Protocol.TCP) as listeners,
    ):
        follower = run._Follower(WEB, kernel.root, chosen, listeners, told.append, wakeups, resets)  # type: ignore[arg-type]
        yield Scene(kernel=kernel, follower=follower, wakeups=wakeups, resets=resets, told=told)


def test_it_attaches_what_is_there_and_registers_the_masters_workers(scene: Scene) -> None:
    first = scene.kernel.listen(7)
    scene.follower.start()
    assert scene.news() == [(Happening.ATTACHED, None), (Happening.REGISTERED, first)]
    scene.kernel.parents[8] = 7
    worker = scene.listens(8)
    (event,) = scene.told
    assert (event.event, event.cookie, event.slot, event.generation) == (Happening.REGISTERED, worker, 1, 1)
    assert (event.pid, event.command) == (8, "server8")
    assert event.delay_s is not None
    assert scene.kernel.chosen() == {first, worker}
    assert scene.resets.shown == {WEB}
    assert "2 listeners" in scene.follower.status()


def test_a_stranger_is_left_alone_and_told_of_once(scene: Scene) -> None:
    first = scene.kernel.listen(7)
    scene.follower.start()
    scene.news()
    stranger = scene.listens(99)
    assert scene.news() == [(Happening.LEFT_ALONE, stranger)]
    scene.follower.look([], True)
    assert scene.news() == [(Happening.EVENTS_LOST, None)]
    assert scene.kernel.chosen() == {first}


def test_a_server_that_comes_after_the_follower_is_attached(scene: Scene) -> None:
    scene.follower.start()
    assert "nothing listens yet" in scene.follower.status()
    scene.follower.prepare()
    first = scene.listens(7)
    assert scene.news() == [(Happening.ATTACHED, None), (Happening.REGISTERED, first)]
    assert scene.kernel.chosen() == {first}


def test_when_all_workers_were_replaced_their_successors_are_taken(scene: Scene) -> None:
    first = scene.kernel.listen(7)
    scene.follower.start()
    scene.kernel.close(first)
    scene.news()
    successor = scene.listens(12)
    assert (Happening.REGISTERED, successor) in scene.news()
    assert scene.kernel.chosen() == {successor}


def test_a_listener_on_its_way_between_processes_is_looked_at_again(scene: Scene) -> None:
    first = scene.kernel.listen(7)
    scene.follower.start()
    scene.news()
    late = scene.listens(0)
    assert scene.follower.unsettled
    assert scene.news() == []
    scene.kernel.socks[late].pid = 7
    assert scene.follower.again_s() is not None
    scene.follower.look([], False)
    assert scene.news() == [(Happening.REGISTERED, late)]
    assert not scene.follower.unsettled
    assert scene.kernel.chosen() == {first, late}


def test_it_gives_up_a_listener_that_nobody_ever_holds_and_says_so_once(scene: Scene) -> None:
    scene.kernel.listen(7)
    scene.follower.start()
    scene.news()
    scene.listens(0)
    while scene.follower.again_s() is not None:
        scene.follower.look([], False)
    assert scene.news() == [(Happening.FAILED, None)]
    assert not scene.follower.unsettled


def test_while_a_reload_has_the_lock_nothing_is_registered(scene: Scene) -> None:
    first = scene.kernel.listen(7)
    scene.follower.start()
    scene.news()
    with places.locked(scene.kernel.root, WEB):
        late = scene.listens(7)
        scene.follower.look([], False)
        assert scene.news() == [(Happening.LOCKED, None)]
        assert scene.kernel.chosen() == {first}
        assert not scene.wakeups.clear()
    assert wait_until(scene.wakeups.clear, ENDS_S), "the free lock wakes it"
    scene.follower.look([], False)
    assert scene.news() == [(Happening.REGISTERED, late)]


def test_a_group_that_somebody_detached_is_left_until_it_is_attached_again(scene: Scene) -> None:
    scene.kernel.listen(7)
    scene.follower.start()
    detach.detach(WEB, scene.kernel.root)
    scene.news()
    scene.listens(7)
    scene.follower.look([], False)
    assert scene.news() == [(Happening.DETACHED, None)]
    attach.attach(WEB, None, None, scene.kernel.root)
    last = scene.listens(7)
    assert scene.news() == [(Happening.REGISTERED, last)]


def test_a_killed_reload_comes_first(scene: Scene) -> None:
    with places.locked(scene.kernel.root, WEB) as folder:
        journals.write([folder], journals.Header(sequence=1, pid=1, begun_at=0.0, step="stop"), b"")
    scene.follower.start()
    scene.listens(7)
    assert scene.news() == [(Happening.FAILED, None)]
    assert scene.kernel.running == {}


def test_errors_of_the_first_look_end_it_and_later_ones_do_not(scene: Scene) -> None:
    cookie = scene.kernel.listen(7)
    theirs = scene.kernel.foreign()
    with pytest.raises(Conflict):
        scene.follower.start()
    scene.kernel.close(cookie)
    scene.follower.start()
    scene.kernel.foreign()
    scene.listens(7)
    assert scene.news() == [(Happening.FAILED, None)]
    assert theirs not in scene.kernel.running.values()


class Events(Closing):
    """In the place of ListenEvents: an event of a new listener, then SIGTERM."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._steps = kernel, 0
        self._reader, self._writer = socket.socketpair()
        self._writer.send(b"!")

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> tuple[list[ListenEvent], bool]:
        self._steps += 1
        if self._steps == 2:
            signal.raise_signal(signal.SIGTERM)
            return [], False
        self._kernel.listen(7)
        return [ListenEvent(time_ns=time.monotonic_ns(), pid=7, port=80)], False


def test_a_whole_run_as_a_service(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "ListenEvents", lambda _protocol, _ports: Events(kernel))
    monkeypatch.setattr(run, "ShownResets", lambda _endpoint: contextlib.nullcontext(Resets()))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    told: list[FollowEvent] = []
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.setblocking(False)
        run.follow(WEB, None, None, kernel.root, told.append)
        sent = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.append(manager.recv(4096).decode())
    assert [event.event for event in told] == [
        Happening.FOLLOWING,
        Happening.ATTACHED,
        Happening.REGISTERED,
        Happening.STOPPED,
    ]
    assert sent[0].startswith("READY=1\nSTATUS=following")
    assert "1 listeners" in sent[1]
    assert sent[2:] == ["WATCHDOG=1", "STOPPING=1"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert kernel.chosen() == set(kernel.socks), "program and registrations stay"
    assert kernel.running
