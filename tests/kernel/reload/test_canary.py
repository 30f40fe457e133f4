"""The canary: shares of new connections, the health gate at 0 %, and the way back."""

from __future__ import annotations

import collections
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.kernel.conftest import PORT, ask, server_command, snapshot
from tests.tool import Tool

pytestmark = [
    pytest.mark.usefixtures("end_owners"),
    pytest.mark.needs("migration by program", "migration wakes readers"),
]
Start = Callable[..., subprocess.Popen[str]]
CONNECTIONS = 10_000


class Asking:
    """A thread that asks without end and counts who answers; an exception is an answer, too."""

    def __init__(self) -> None:
        self.answers: collections.Counter[str] = collections.Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.answers[ask() or "closed"] += 1
            except OSError as error:
                self.answers[type(error).__name__] += 1


@pytest.mark.parametrize(("policy", "percent"), [("hash", 5), ("round-robin", 50)])
def test_a_share_is_accurate(tool: Tool, server: Start, percent: int, policy: str) -> None:
    """Over 10,000 connections the clients count the share within one percentage point, and so does the program."""
    from reuseport_tool.group import choice, places
    from reuseport_tool.group.state import State
    from reuseport_tool.models import parse_endpoint

    server("old", "--listeners", 2)
    tool.ok("attach", PORT, "--policy", policy)
    server("new", "--listeners", 2)
    tool.ok("map", "add", PORT, "--generation", 2)
    folder = places.group_folder(tool.bpffs, parse_endpoint(f"127.0.0.1:{PORT}"))  # type: ignore[arg-type]
    with State.open(folder) as opened:
        opened.choice.share(2, percent * choice.SHARES // 100)
        answers = collections.Counter(ask() for _ in range(CONNECTIONS))
        counters = opened.counters()
    assert answers.keys() == {"old", "new"}
    assert abs(answers["new"] / CONNECTIONS * 100 - percent) < 1
    assert (counters.canary, counters.selected) == (answers["new"], answers["old"])
    group = tool.ok("status", PORT)["groups"][0]
    assert group["canary"] == {"generation": 2, "percent": percent}
    assert {listener["flag"] for listener in group["listeners"]} == {"working", "canary"}


def test_steps_end_in_the_switch(tool: Tool, server: Start) -> None:
    server("old")
    with Asking() as asking:
        options = ("--canary", "20,50,100", "--step", "1500ms")
        report = tool.ok("reload", PORT, *options, "--", *server_command("new"))
        assert ask() == "new"
    assert asking.answers.keys() == {"old", "new"}
    assert [step["percent"] for step in report["canary"]] == [20, 50]
    for step in report["canary"]:
        total = step["to_new"] + step["to_old"]
        assert total > 100
        # One percentage point; and a handful of connections, as the counters are not read at the very instants.
        assert abs(step["to_new"] - total * step["percent"] / 100) <= max(5, total / 100)
    assert tool.ok("status", PORT)["groups"][0]["canary"] is None


def test_a_url_is_asked_of_the_new_server_at_0_percent(tool: Tool, server: Start) -> None:
    """The answer of the new server decides although the old one, which gets all connections, is well."""
    server("old", "--http", "200")
    before = snapshot(tool)
    url = ("--health-url", f"http://127.0.0.1:{PORT}/health")
    soon = ("--health-timeout", "3s")
    error = tool.fails(8, "reload", PORT, *url, *soon, "--", *server_command("new", "--http", "503"))
    assert "answers with status 503" in error["message"]
    assert snapshot(tool) == before
    done = tool.run("reload", PORT, *url, *soon, "--", *server_command("new", "--http", "503"))
    counts = [step["name"] for step in done.json["steps"]]
    assert counts[-2:] == ["canary", "roll back"], "it was found out before the switch"
    tool.ok("reload", PORT, *url, "--", *server_command("new", "--http", "204"))
    assert tool.ok("status", PORT)["groups"][0]["counters"]["steered"] == 2


@pytest.mark.parametrize(("address", "host"), [("::", "[::1]"), ("0.0.0.0", "127.0.0.3")])
def test_steering_to_a_wildcard(tool: Tool, server: Start, address: str, host: str) -> None:
    server("old", "--http", "503", "--address", address)
    url = f"http://{host}:{PORT}/"
    tool.ok("reload", PORT, "--health-url", url, "--", *server_command("new", "--http", "200", "--address", address))


BAD_DEPLOYS = {
    "url": (("--health-url", f"http://127.0.0.1:{PORT}/"), ("--http", 500), "status 500"),
    "command": (("--health-command", "false"), (), "health command exited with 1"),
    "closes": (("--step", "20s"), ("--live", 2), "closed again"),
    "resets": (("--abort-on", "resets=5", "--step", "20s"), ("--reset",), "resets grew by"),
}


@pytest.mark.parametrize("bad", BAD_DEPLOYS)
def test_a_bad_canary_goes_back_to_0_percent(tool: Tool, server: Start, bad: str) -> None:
    options, behaviour, message = BAD_DEPLOYS[bad]
    server("old")
    tool.ok("attach", PORT)
    before = snapshot(tool)
    timeouts = ("--health-timeout", "3s", "--step", "300ms")
    with Asking():
        command = server_command("new", *behaviour)
        error = tool.fails(8, "reload", PORT, "--canary", "5", *timeouts, *options, "--", *command)
    assert message in error["message"]
    after = snapshot(tool)
    for status, _ in (before, after):
        for listener in status["groups"][0]["listeners"]:
            listener.pop("accept_queue")
    assert after == before
    assert {ask() for _ in range(40)} == {"old"}
