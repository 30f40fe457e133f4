"""bench sockets with few sockets: its structure and its proofs, not its figures."""

from __future__ import annotations

import os

import pytest

from reuseport_tool.bench import sockets as bench_sockets
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import netns
from reuseport_tool.kernel.socket_iterator import SocketWalk
from reuseport_tool.models import Protocol
from tests.tool import Tool

SIZES = (10, 31)  # the second one in two processes, with a lone listener


@pytest.mark.parametrize("protocol", list(Protocol))
def test_arms_and_sizes(root: None, monkeypatch: pytest.MonkeyPatch, protocol: Protocol) -> None:
    monkeypatch.setattr(bench_sockets, "_HOLDS", 20)
    before = netns.identity()
    rounds: list[int] = []
    report = bench_sockets.bench(SIZES, [protocol], 2, lambda: rounds.append(1))
    assert netns.identity() == before
    assert len(rounds) == 2 * len(SIZES)
    assert tuple(size.sockets for size in report.sizes) == SIZES
    for size in report.sizes:
        assert [arm.name for arm in size.arms] == ["walk", "list", "sockets", "ss", "ss -p"]
        assert all(arm.milliseconds > 0 for arm in size.arms)


def test_a_walk_that_misses_one_is_noticed(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = SocketWalk.read
    monkeypatch.setattr(SocketWalk, "read", lambda self: read(self)[1:])
    with pytest.raises(ToolError, match="ss lists 10 tcp sockets, and the walk 9"):
        bench_sockets.bench([10], [Protocol.TCP], 2)


def test_too_many_sockets_are_an_error(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sockets, "_most_held", lambda: 2_000_000)
    monkeypatch.setattr(bench_sockets, "_fill_udp", lambda *_: os.open("/no/such", os.O_RDONLY))
    with pytest.raises(ToolError, match="cannot be opened"):
        bench_sockets.bench([100], [Protocol.UDP], 2)


def test_the_command(tool: Tool) -> None:
    report = tool.ok("bench", "sockets", "--sockets", 10, "--rounds", 2, "--protocol", "tcp")
    assert [size["sockets"] for size in report["sizes"]] == [10]
