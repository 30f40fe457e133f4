"""`check udp-reload`: every case comes out as expected, and one that does not is said."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from reuseport_tool.check import udp_reload
from reuseport_tool.check.pace import USUAL
from reuseport_tool.check.udp_load import CLIENTS, Background, UdpLoad
from reuseport_tool.check.udp_reload import UdpTrial
from reuseport_tool.check.udp_server import FENCE, HELLO
from reuseport_tool.check.udp_stories import STORIES, Story
from reuseport_tool.models import HandedOver
from tests.records import some
from tests.tool import Tool


@pytest.mark.needs("TCP iterator", "detach from a group")
def test_every_case_is_as_expected(tool: Tool) -> None:
    done = tool.run("check", "udp-reload", timeout_s=300)
    assert done.out, done.err
    report = done.json
    assert [case for case in report["cases"] if not case["ok"]] == []
    assert report["ok"]
    assert len(report["cases"]) == 2 * len(STORIES)
    assert all(case["lost"] for case in report["cases"] if case["expected"] == "lose")
    assert {case["flows"] for case in report["cases"]} >= {"plain", "none", "address"}


def _handed_over(evicted: int, drops_new: int) -> HandedOver:
    return some(
        HandedOver,
        endpoint="udp://127.0.0.1:5000",
        flows="none",
        to_old=1,
        to_new=1,
        unread=0,
        drops_old=0,
        drops_new=drops_new,
        evicted=evicted,
    )


@pytest.mark.parametrize(
    ("expected", "code", "lost", "evicted", "dropped", "said"),
    [
        ("survive", 0, 0, 0, 0, ""),
        ("survive", 0, 1, 0, 0, "not answered"),
        ("survive", 1, 0, 0, 0, "exits with 1"),
        ("lose", 0, 0, 0, 0, "proves nothing"),
        ("lose", 0, 5, 0, 0, ""),
        ("lose", 1, 5, 0, 3, ""),
        ("lose", 0, 5, 0, 3, "exits with 0"),
        ("lose", 1, 5, 0, 0, "exits with 1"),
        ("reported", 1, 5, 0, 1, "no evicted flow"),
        ("reported", 1, 5, 2, 0, ""),
        ("rolled back", 8, 1, 0, 0, "not answered"),
        ("refused", 0, 0, 0, 0, "exits with 0"),
    ],
)
def test_a_verdict(expected: str, code: int, lost: int, evicted: int, dropped: int, said: str) -> None:
    trial = UdpTrial(Story(name="a story", way="none", expected=expected), "ipv4", "/nowhere", USUAL)
    trial.sent, trial.lost, trial.code, trial.handed_over = 10, lost, code, _handed_over(evicted, dropped)
    verdict = trial.verdict()
    assert said in verdict
    assert bool(said) == bool(verdict)


def test_a_case_that_cannot_run_is_said_and_the_others_run(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(trial: UdpTrial) -> None:
        if trial._address == "::1":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        trial.sent = trial.lost = 1

    monkeypatch.setattr(UdpTrial, "play", play)
    monkeypatch.setattr(udp_reload, "STORIES", (Story(name="a story", way="plain", expected="lose"),))
    found = udp_reload.check(tool.bpffs)
    assert [(case.family, case.ok) for case in found.cases] == [("ipv4", True), ("ipv6", False)]
    assert "Too many open files" in found.cases[1].detail
    assert not found.ok


def test_what_a_thread_raises_is_not_lost() -> None:
    def fail(_: threading.Event) -> None:
        raise ValueError("of the thread")

    background = Background(fail)
    with pytest.raises(ValueError, match="of the thread"):
        background.close()


@contextlib.contextmanager
def _echo(port: int, lose_every: int) -> Iterator[None]:
    """Answers all but each n-th datagram of those that are counted."""

    def serve(stop: threading.Event) -> None:
        seen = 0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                data, source = server.recvfrom(64)
                seen += data not in (HELLO, FENCE)
                if data in (HELLO, FENCE) or seen % lose_every:
                    server.sendto(b"name " + data, source)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        server.settimeout(0.05)
        with Background(serve):
            yield


@contextlib.contextmanager
def _high_descriptors() -> Iterator[None]:
    """What is opened inside has a number that select(2) does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        fd = -1
        while fd < 1024:
            fd = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, fd)
        yield


def test_the_load_counts_what_nobody_answers(in_netns: None) -> None:
    with _high_descriptors(), _echo(5000, lose_every=5):
        with UdpLoad("127.0.0.1", 5000) as load:
            load.go_on(CLIENTS * 10)
        assert load.sent >= CLIENTS * 10
        assert load.lost == load.sent // 5
