"""`reload NAME`: a file in place of the options, and the command line before the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.cli import deploy_file, main
from reuseport_tool.errors import Conflict, NotFound
from reuseport_tool.models import Endpoint
from reuseport_tool.reload import transaction
from reuseport_tool.reload.plan import Hook, Plan

FILE = """
endpoint = ["8080", "[::]:8443"]
command = ["/srv/web/server", "--port", "8080"]
stop-signal = "QUIT"
health-url = "http://127.0.0.1:8080/health"
canary = [5, 12.5, 100]
step = "2m"
abort-on = ["resets=20", "overflows"]
probe = false
listeners = 4
on-switch = ["logger switched"]
"""


class Called(Exception):
    """The transaction would have begun."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(deploy_file, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Endpoint, ...], Plan]]:
    """What the transaction was called with."""
    calls: list[tuple[tuple[Endpoint, ...], Plan]] = []

    def reload(endpoints: tuple[Endpoint, ...], plan: Plan, *_: Any) -> None:
        calls.append((endpoints, plan))
        raise NotFound("not really")

    monkeypatch.setattr(transaction, "reload", reload)
    return calls


def test_every_option_comes_from_the_file(folder: Path, begun: list[tuple[tuple[Endpoint, ...], Plan]]) -> None:
    (folder / "web.toml").write_text(FILE)
    assert main.run(["reload", "web"]) == NotFound.exit_code
    ((endpoints, plan),) = begun
    assert [str(endpoint) for endpoint in endpoints] == ["tcp://*:8080", "tcp://[::]:8443"]
    assert plan.command == ("/srv/web/server", "--port", "8080")
    assert plan.stop_signal.name == "SIGQUIT"
    assert plan.health_url == "http://127.0.0.1:8080/health"
    assert plan.canary == (5, 12.5, 100)
    assert plan.step_s == 120
    assert len(plan.abort_on) == 2
    assert plan.probe is False
    assert plan.listeners == 4
    assert plan.hooks == (Hook(step="switch", command="logger switched"),)


def test_the_command_line_comes_first(folder: Path, begun: list[tuple[tuple[Endpoint, ...], Plan]]) -> None:
    (folder / "web.toml").write_text(FILE)
    for arguments in (["--run", "web", "web", "--step", "5s"], ["web", "--step", "5s", "--run", "web"]):
        main.run(["reload", *arguments, "--", "./other"])
    (_, plan), (_, same) = begun
    assert same == plan
    assert plan.step_s == 5
    assert plan.run == "web"
    assert plan.command == ("./other",)
    assert plan.listeners == 4


def test_an_endpoint_is_no_name(folder: Path, begun: list[tuple[tuple[Endpoint, ...], Plan]]) -> None:
    main.run(["reload", "8080", "--stop-signal", "QUIT", "--", "./server", "web"])
    ((endpoints, plan),) = begun
    assert [endpoint.port for endpoint in endpoints] == [8080]
    assert plan.command == ("./server", "web")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoint = ", "web.toml"),
        ('endpoint = "8080"\nhealth_uri = "x"', "no such option: health_uri"),
        ('endpoint = "8080"\ncommand = "server"', "list of words"),
        ('endpoint = "8080"\nstep = "soon"', "not a duration"),
        ('endpoint = "nowhere:"', "endpoint"),
        ("run = 'true'", "endpoint is missing"),
        ("endpoint = {port = 8080}", "endpoint is missing"),
        ("endpoint = '8080'\noutput = true", "output is text or a number"),
        ("endpoint = '8080'\nstep = {seconds = 3}", "step is text or a number"),
    ],
)
def test_a_wrong_file_is_a_usage_error(
    text: str,
    message: str,
    folder: Path,
    begun: list[tuple[tuple[Endpoint, ...], Plan]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "web.toml").write_text(text)
    assert main.run(["reload", "web"]) == 2
    assert message in capsys.readouterr().err
    assert not begun


def test_a_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["reload", "web"]) == 2
    assert str(folder / "web.toml") in capsys.readouterr().err


def test_a_file_names_its_endpoints_itself(folder: Path) -> None:
    (folder / "web.toml").write_text(FILE)
    assert main.run(["reload", "web", "8080"]) == 2


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_file_that_others_can_write_is_refused(
    folder: Path, begun: list[object], capsys: pytest.CaptureFixture[str], mode: int
) -> None:
    (folder / "web.toml").write_text(FILE)
    (folder / "web.toml").chmod(mode)
    assert main.run(["reload", "web"]) == Conflict.exit_code
    assert f"{mode:04o}" in capsys.readouterr().err
    assert not begun
