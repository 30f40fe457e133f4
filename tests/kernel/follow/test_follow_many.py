"""attach --follow with more events and listeners than there is room for."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from reuseport_tool.group import places
from reuseport_tool.group.layout import CAPACITY_LEAST
from reuseport_tool.group.state import State
from reuseport_tool.kernel import netns
from reuseport_tool.kernel.listen_events import ListenEvents
from reuseport_tool.models import Protocol
from reuseport_tool.waiting import wait_until
from tests.follower import Follower
from tests.kernel.conftest import PORT
from tests.kernel.follow.test_follow import GROUP, bind, registered
from tests.tool import Tool

pytestmark = pytest.mark.usefixtures("servers_end")


def test_events_that_are_lost_are_made_good(tool: Tool, tmp_path: Path) -> None:
    """More listen() than the ring holds, while the follower cannot read."""
    with ExitStack() as stack, Follower(tool, tmp_path, PORT) as follower:
        stack.enter_context(bind())
        follower.await_event("registered")
        follower.send(signal.SIGSTOP)
        for _ in range(4000):
            bind().close()
        kept = [stack.enter_context(bind()) for _ in range(3)]
        follower.send(signal.SIGCONT)
        follower.await_event("events-lost")
        follower.await_event("registered", 1 + len(kept))


@pytest.mark.parametrize("protocol", Protocol)
def test_the_ring_tells_of_a_loss(in_netns: None, protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with ListenEvents(protocol, [PORT], ring_bytes=4096) as events:
        for _ in range(10):
            bind(kind).close()
        drained, lost = events.drain()
        assert (len(drained), lost) == (10, False)
        for _ in range(1000):
            bind(kind).close()
        drained, lost = events.drain()
        assert 0 < len(drained) < 1000
        assert lost
        bind(kind).close()
        drained, lost = events.drain()
        assert (len(drained), lost) == (1, False)


@pytest.mark.parametrize("protocol", Protocol)
def test_no_event_of_another_port_or_namespace(in_netns: None, protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with ListenEvents(protocol, [PORT]) as events, ListenEvents(protocol, [PORT + 1]) as others:
        with netns.throw_away():
            bind(kind).close()
        assert events.drain() == ([], False)
        bind(kind).close()
        assert len(events.drain()[0]) == 1
        assert others.drain() == ([], False)


def test_more_respawns_than_slots(tool: Tool, tmp_path: Path) -> None:
    with bind(), Follower(tool, tmp_path, PORT) as follower:
        for count in range(2, CAPACITY_LEAST + 100):
            with bind():
                assert wait_until(lambda count=count: len(registered(tool)) == 2, 5, poll_s=0.0005), count  # type: ignore[misc]
            # Who walks over the descriptors of all processes just then holds the listener a moment longer.
            assert wait_until(lambda count=count: len(registered(tool)) == 1, 5, poll_s=0.0005), count  # type: ignore[misc]
        assert not follower.events("failed")
        assert {event["slot"] for event in follower.events("registered")} == {0, 1}


def test_ten_thousand_listeners_through_one_slot(tool: Tool) -> None:
    assert tool.bpffs is not None
    with bind():
        tool.ok("attach", PORT)
        with State.open(places.group_folder(tool.bpffs, GROUP)) as opened:
            slots = set()
            for _ in range(10_000):
                with bind() as sock:
                    slots.add(opened.generations[1].add(sock.fileno()))
                # Who walks over the descriptors of all processes just then holds the listener a moment longer.
                assert wait_until(lambda: len(opened.generations[1].slots()) == 1, 10)
    assert slots == {1}


def test_a_full_generation_is_told_and_survived(tool: Tool, tmp_path: Path) -> None:
    """A generation has room for twice as many listeners as there are when it is made."""
    with ExitStack() as stack:
        for _ in range(CAPACITY_LEAST // 2):
            stack.enter_context(bind())
        with Follower(tool, tmp_path, PORT) as follower:
            for _ in range(CAPACITY_LEAST // 2):
                stack.enter_context(bind())
            follower.await_event("registered", CAPACITY_LEAST)
            with bind():
                failed = follower.await_event("failed")[0]
                assert f"no slot {CAPACITY_LEAST}" in failed["detail"]
            stack.pop_all().close()
            with bind():
                follower.await_event("registered", CAPACITY_LEAST + 1)
