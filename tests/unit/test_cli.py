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


LISTENER = models.Listener(
    cookie=77,
    pid=4242,
    command="nginx",
    uid=0,
    generation=2,
    slot=1,
    accept_queue=5,
    backlog=511,
    half_open=3,
    flag="working",
)
GROUP = models.Group(
    endpoint="tcp://10.0.0.1:80",
    netns="net:[4026531840]",
    program=models.Program(id=12, name="hash", policy="hash"),
    working_generation=2,
    listeners=(LISTENER, dataclasses.replace(LISTENER, cookie=78, generation=None, slot=None, flag="foreign")),
    counters=models.Counters(
        selected=10, fallback=1, migrated_established=5, migrated_syn_recv=6, migrated_new_syn_recv=7, dropped=0
    ),
)
RELOAD = models.Reload(
    endpoint="tcp://10.0.0.1:80",
    result="reloaded",
    strategy=models.Strategy.MIGRATE,
    old=models.Side(generation=1, pids=(1,), listeners=(11,)),
    new=models.Side(generation=2, pids=(2,), listeners=(22,)),
    queued_at_stop=models.Queues(accept_queue=50, half_open=3),
    migrated=models.Migrated(established=50, syn_recv=0, new_syn_recv=3, total=53),
    lost=models.Lost(migrate_failures=0, listen_drops=0, listen_overflows=0, aborted_accepted=0),
    steps=(models.Step(name="switch", duration_s=0.1, outcome="done"),),
    switch_us=4.2,
    duration_s=1.5,
)
RESULTS = [
    (models.Status(groups=(GROUP,)), ["tcp://10.0.0.1:80", "77", "4242", "nginx", "foreign", "established 5"]),
    (models.Status(groups=()), ["No SO_REUSEPORT group"]),
    (
        models.AttachReport(
            attached=(
                models.Attached(
                    endpoint="e",
                    result="unchanged",
                    program=models.Program(id=1, name="cpu", policy="cpu"),
                    generation=3,
                    registered=(),
                    pins="/p",
                    duration_s=0.1,
                ),
            )
        ),
        ["already attached", "cpu"],
    ),
    (models.DetachReport(detached=(models.Detached(endpoint="e", result="cleaned", pins="/p"),)), ["pins removed"]),
    (
        models.Maps(
            maps=(
                models.GenerationMap(
                    endpoint="e",
                    generation=4,
                    working=True,
                    members=1,
                    capacity=512,
                    slots=(models.Slot(slot=0, cookie=77),),
                ),
            )
        ),
        ["working", "0 → 77"],
    ),
    (models.MapChanges(changes=(models.MapChange(endpoint="e", change="switched", generation=9),)), ["generation 9"]),
    (models.MigrateReq(netns="net:[1]", enabled=True, changed=True), ["is on now"]),
    (RELOAD, ["generation 2", "4.2 µs", "50 established", "0 lost"]),
    (
        dataclasses.replace(
            RELOAD, lost=models.Lost(migrate_failures=2, listen_drops=1, listen_overflows=0, aborted_accepted=4)
        ),
        ["2 migrations failed", "4 connections"],
    ),
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
