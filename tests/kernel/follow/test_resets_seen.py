"""What a follower counts is what `status` shows, for as long as the follower runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.waiting import wait_until
from tests.follower import Follower
from tests.kernel.conftest import PORT, Clients
from tests.tool import Tool

pytestmark = pytest.mark.needs("tcp_send_reset")
DEADLINE_S = 20.0


def seen(tool: Tool) -> Any:
    return tool.ok("status", PORT)["groups"][0]["followed"]


def lost(resets: Any) -> tuple[int, int]:
    return resets["never_accepted"], resets["accepted"]


@pytest.mark.needs("migration by program", "migration wakes readers")
def test_status_shows_what_the_follower_counted(
    tool: Tool, tmp_path: Path, server: Callable[..., Any], clients: Clients
) -> None:
    deaf = server("deaf", "--deaf")
    assert seen(tool) is None
    with Follower(tool, tmp_path, PORT) as follower:
        server("new", "--reset")
        clients.connect(30)
        assert seen(tool)["pid"] == follower.pid
        assert lost(seen(tool)["resets"]) == (0, 0)
        deaf.kill()
        deaf.wait()
        assert clients.answers() == {"reset": 30}
        # What waited has moved: the new server resets it, after it has accepted it.
        assert lost(seen(tool)["resets"]) == (0, 30)
        assert "0 lost" in tool.run("status", PORT, as_json=False).out
        assert follower.stop() == 0
    assert seen(tool) is None


def test_a_loss_is_shown_and_a_killed_follower_shows_nothing(
    tool: Tool, tmp_path: Path, server: Callable[..., Any], clients: Clients
) -> None:
    only = server("only", "--deaf")
    with Follower(tool, tmp_path, PORT) as follower:
        clients.connect(7)
        only.kill()
        only.wait()
        assert clients.answers() == {"reset": 7}
        server("next", "--deaf")
        follower.await_event("attached", 2)
        assert wait_until(lambda: seen(tool) is not None, DEADLINE_S)
        assert lost(seen(tool)["resets"]) == (7, 0)
        assert "7 lost (7 before accept" in tool.run("status", PORT, as_json=False).out
        follower.stop(signal.SIGKILL)
        assert seen(tool) is None
    with Follower(tool, tmp_path, PORT) as again:
        assert wait_until(lambda: seen(tool) is not None, DEADLINE_S)
        assert seen(tool)["pid"] == again.pid
        assert lost(seen(tool)["resets"]) == (0, 0)
        tool.ok("detach", PORT)
        assert seen(tool) is None
