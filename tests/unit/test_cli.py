"""The command line without a kernel: help, usage errors, exit codes, both renderings."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal

import click
import pytest

from reuseport_tool import errors, models
from reuseport_tool.cli import main, show
from reuseport_tool.cli.reload import SignalType

EXIT_CODES = {
    "ToolError": 1,
    "UsageError": 2,
    "MissingCapability": 3,
    "Unsupported": 4,
    "ProgramRejected": 5,
    "NotFound": 6,
    "Conflict": 7,
    "RolledBack": 8,
    "Interrupted": 130,
}


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    return [
        found
        for name in command.list_commands(context)
        for found in verbs(command.get_command(context, name) or command, (*path, name))
    ]


VERBS = verbs(main.cli)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_examples(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"reuseport-tool {verb[0]}" in text


def test_exit_codes() -> None:
    found = {
        name: value.exit_code
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.ToolError)
    }
    assert found == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_an_error_ends_with_its_code(
    name: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise getattr(errors, name)("it broke", hint="mend it", log="long")

    monkeypatch.setattr(main.cli, "main", fail)
    assert main.run(["--json"] if as_json else []) == EXIT_CODES[name]
    shown = capsys.readouterr()
    assert shown.out == ""
    if as_json:
        assert json.loads(shown.err) == {
            "code": EXIT_CODES[name],
            "message": "it broke",
            "hint": "mend it",
            "log": None,
        }
    else:
        assert shown.err == "error: it broke\nhint:  mend it\n"


def test_an_unknown_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main.cli, "main", fail)
    with pytest.raises(ZeroDivisionError):
        main.run([])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.cli, "main", fail)
    assert main.run([]) == 130


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["attach"], ["attach", "80", "--policy", "x"], ["status", "x"], ["migrate-req", "maybe"]],
    ids=" ".join,
)
def test_usage_errors_name_the_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--json", *arguments]) == 2
    assert json.loads(capsys.readouterr().err)["code"] == 2


@pytest.mark.parametrize("group", [[], ["map"], ["check"], ["bench"]], ids=" ".join)
def test_a_group_without_a_verb_shows_its_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(group) == 2
    shown = capsys.readouterr()
    assert "Commands:" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigquit", 3), ("9", 9), ("USR2", 12)])
def test_signals(text: str, number: int) -> None:
    assert SignalType().convert(text, None, None) is signal.Signals(number)


def test_no_signal() -> None:
    with pytest.raises(click.BadParameter):
        SignalType().convert("HANGUP", None, None)


LISTENER = models.Listener(77, 4242, "nginx", 0, 2, 1, 5, 511, 3, "working")
GROUP = models.Group(
    "tcp://10.0.0.1:80",
    "net:[4026531840]",
    models.Program(12, "hash", "hash"),
    2,
    (LISTENER, dataclasses.replace(LISTENER, cookie=78, generation=None, slot=None, flag="foreign")),
    models.Counters(10, 1, 5, 6, 7, 0),
)
RELOAD = models.Reload(
    "tcp://10.0.0.1:80",
    "reloaded",
    models.Strategy.MIGRATE,
    models.Side(1, (1,), (11,)),
    models.Side(2, (2,), (22,)),
    models.Queues(50, 3),
    models.Migrated(50, 0, 3, 53),
    models.Lost(0, 0, 0, 0),
    (models.Step("switch", 0.1, "done"),),
    4.2,
    1.5,
)
RESULTS = [
    (models.Status((GROUP,)), ["tcp://10.0.0.1:80", "77", "4242", "nginx", "foreign", "established 5"]),
    (models.Status(()), ["No SO_REUSEPORT group"]),
    (
        models.AttachReport((models.Attached("e", "unchanged", models.Program(1, "cpu", "cpu"), 3, (), "/p", 0.1),)),
        ["already attached", "cpu"],
    ),
    (models.DetachReport((models.Detached("e", "cleaned", "/p"),)), ["pins removed"]),
    (models.Maps((models.GenerationMap("e", 4, True, 1, 512, (models.Slot(0, 77),)),)), ["working", "0 → 77"]),
    (models.MapChanges((models.MapChange("e", "switched", 9),)), ["generation 9"]),
    (models.MigrateReq("net:[1]", True, True), ["is on now"]),
    (RELOAD, ["generation 2", "4.2 µs", "50 established", "0 lost"]),
    (dataclasses.replace(RELOAD, lost=models.Lost(2, 1, 0, 4)), ["2 migrations failed", "4 connections"]),
]


@pytest.mark.parametrize(("model", "expected"), RESULTS, ids=lambda value: type(value).__name__)
def test_both_renderings_show_the_same(model: object, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    show.result(model, as_json=False)
    text = capsys.readouterr().out
    for word in expected:
        assert word in text
    assert "\x1b" not in text
    show.result(model, as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(dataclasses.asdict(model)))  # type: ignore[call-overload]
