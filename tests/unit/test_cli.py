"""The command line without a kernel: help, usage errors, exit codes, both renderings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import signal
from collections.abc import Callable

import click
import pytest

from reuseport_tool import errors, models
from reuseport_tool.cli import main, show
from reuseport_tool.cli.types import DURATION, OneOf, SignalType, parse_ports
from reuseport_tool.errors import UsageError
from tests.records import NGINX, some

EXIT_CODES = {
    "ToolError": 1,
    "UsageError": 2,
    "MissingCapability": 3,
    "Unsupported": 4,
    "ProgramRejected": 5,
    "NotFound": 6,
    "Closed": 6,
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


GROUPS = sorted({verb[:1] for verb in VERBS if len(verb) > 1})


@pytest.mark.parametrize("verb", [*VERBS, *GROUPS, ()], ids=" ".join)
def test_every_verb_has_help_with_examples(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns no line is wider, no word is broken, and no summary is cut short."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main.run([*verb, "--help"]) == 0
    usage, *lines = capsys.readouterr().out.splitlines()
    assert "  Examples:" in lines
    assert any(line.strip().startswith(" ".join(("reuseport-tool", *verb))) for line in lines)
    assert [line for line in lines if len(line) > 80 or line.endswith("...") or re.search(r"\w-$", line)] == []
    assert len(usage) <= 80


def test_exit_codes() -> None:
    found = {
        name: value.exit_code
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.ToolError)
    }
    assert found == EXIT_CODES


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make the verb `doctor` fail."""

    def set_up(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(
            importlib.import_module("reuseport_tool.cli.doctor"), "command", click.Command("doctor", callback=fail)
        )

    return set_up


Failing = Callable[[BaseException], None]


@pytest.mark.parametrize("name", EXIT_CODES)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_an_error_ends_with_its_code(
    name: str, as_json: bool, failing: Failing, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(getattr(errors, name)("it broke", hint="mend it", log="long"))
    assert main.run(["--json", "doctor"] if as_json else ["doctor"]) == EXIT_CODES[name]
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


def test_an_unknown_exception_keeps_its_traceback(failing: Failing) -> None:
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main.run(["doctor"])


def test_ctrl_c_is_130(failing: Failing) -> None:
    failing(KeyboardInterrupt())
    assert main.run(["doctor"]) == 130


def test_names_in_a_message_do_not_steer_the_terminal(failing: Failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(errors.ToolError("process \x1b[2J\nroot", hint="of b\udcff"))
    main.run(["doctor"])
    assert capsys.readouterr().err == "error: process \\x1b[2J\\nroot\nhint:  of b\\xff\n"


@pytest.mark.parametrize(
    ("arguments", "is_json"),
    [
        (["--json", "reload", "9"], True),
        (["reload", "--json", "9"], True),
        (["reload", "9", "--json"], True),
        (["reload", "9", "--json", "--", "x"], True),
        (["reload", "9", "--", "./server", "--json"], False),
        (["reload", "x", "--", "./server", "--json"], False),
        (["reload", "--nonsense", "--", "./server", "--json"], False),
        (["status", "--json", "--nonsense"], True),
        (["status", "--nonsense", "--json"], True),
        (["map", "--json", "show"], True),
        (["map", "show", "--json"], True),
        (["--json", "--nonsense"], True),
        (["--nonsense"], False),
        (["nonsense"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_json_as_the_command_line_says(
    arguments: list[str], is_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) != 0
    shown = capsys.readouterr().err
    assert shown.startswith("{") == is_json, shown
    monkeypatch.setenv("REUSEPORT_TOOL_JSON", "1")
    assert main.run(arguments) != 0
    json.loads(capsys.readouterr().err)


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


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("30", 30), ("30s", 30), ("5m", 300), ("500ms", 0.5), (".5", 0.5), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "1e9", "9" * 400, "99999d", "5 m s", "٣"])
def test_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


HUGE = "9" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["attach", "80", "--wait", "nan"],
        ["detach", "80", "--wait", "-1"],
        ["status", "--watch", "--interval", "0"],
        ["status", HUGE],
        ["--netns", f"pid:{HUGE}", "status"],
        ["sockets", "--pid", HUGE],
        ["sockets", "--pid", "4194305"],
        ["sockets", "--cookie", str(1 << 64)],
        ["sockets", "--endpoint", "80", "--generation", str(1 << 40)],
        ["destroy", "--idle", "nan", "--yes"],
        ["map", "add", "80", "--slot", "-1"],
        ["map", "switch", "80", HUGE],
        ["reload", "80", "--canary", "nan", "--", "x"],
        ["reload", "80", "--abort-on", f"drops={HUGE}", "--", "x"],
        ["reload", "80", "--listeners", HUGE, "--", "x"],
        ["autolowat", "attach", "--cgroup", "/", "--framing", "rpc", "--ports", "5-1"],
        ["autolowat", "attach", "--cgroup", "/", "--framing", "rpc", "--ports", f"1-{HUGE}"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_numbers_have_bounds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("verb", "variable"),
    [
        ("attach 80", "ATTACH_WAIT"),
        ("status", "STATUS_INTERVAL"),
        ("reload 80 -- x", "RELOAD_STOP_TIMEOUT"),
        ("reload 80 -- x", "RELOAD_WAIT"),
        ("sockets", "SOCKETS_OLDER_THAN"),
        ("check hot-reload", "CHECK_HOT_RELOAD_CONNECTIONS"),
        ("bench sockets", "BENCH_SOCKETS_SOCKETS"),
    ],
)
def test_every_option_comes_from_the_environment(
    verb: str, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"REUSEPORT_TOOL_{variable}", "nonsense")
    assert main.run(verb.split()) == 2
    assert "nonsense" in capsys.readouterr().err


def test_members_of_an_enum() -> None:
    kind = OneOf(models.Engine, none="auto")
    assert kind.convert("auto", None, None) is None
    for value in models.Engine:
        assert kind.convert(value.value, None, None) is kind.convert(value, None, None) is value


def test_ports() -> None:
    assert parse_ports("443,80-82,81") == (80, 81, 82, 443)
    for text in ("", ",", " , "):
        with pytest.raises(UsageError, match=r"no port|not a port"):
            parse_ports(text)


LISTENER = some(
    models.Listener, cookie=77, **NGINX, generation=2, slot=1, accept_queue=5, backlog=511, half_open=3, flag="working"
)
GONE = tuple(models.GonePins(endpoint=f"tcp://10.0.0.1:{port}", netns="net:[7]", pins="p") for port in range(1, 6))
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
    groups=("tcp://10.0.0.1:80",),
    result="reloaded",
    strategy=models.Strategy.MIGRATE,
    old=models.Side(generation=1, pids=(1,), listeners=(11,)),
    new=models.Side(generation=2, pids=(2,), listeners=(22,)),
    queued_at_stop=models.Queues(accept_queue=50, half_open=3),
    migrated=models.Migrated(established=50, syn_recv=0, new_syn_recv=3, total=53),
    lost=models.Lost(migrate_failures=0, listen_drops=0, listen_overflows=0, aborted_accepted=0),
    resets=models.Resets(never_accepted=0, handshakes=0, refused=0, accepted=0),
    steps=(models.Step(name="switch", begin_s=0.9, duration_s=0.1, outcome="done"),),
    switch_us=4.2,
    begun_at=1_700_000_000.0,
    duration_s=1.5,
)
RESULTS = [
    (models.Status(groups=(GROUP,)), ["tcp://10.0.0.1:80", "77", "4242", "nginx", "foreign", "established 5"]),
    (models.Status(groups=()), ["No SO_REUSEPORT group"]),
    (models.Status(groups=(), gone=GONE[:1]), ["that are gone: tcp://10.0.0.1:1 in net:[7]. 'detach --gone'"]),
    (models.Status(groups=(), gone=GONE), ["tcp://10.0.0.1:3 in net:[7], and 2 more. 'detach --gone'"]),
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
        ["working", "0→77"],
    ),
    (models.MapChanges(changes=(models.MapChange(endpoint="e", change="switched", generation=9),)), ["generation 9"]),
    (models.MigrateReq(netns="net:[1]", enabled=True, changed=True), ["is on now"]),
    (RELOAD, ["generation 2", "4.2 µs", "50 established", "no connection"]),
    (
        dataclasses.replace(
            RELOAD,
            lost=models.Lost(migrate_failures=2, listen_drops=1, listen_overflows=0, aborted_accepted=4),
            balance=models.Balance(waiting=11, later=0, moved=3, old_side=1, lost=5, half_open=2),
            resets=models.Resets(never_accepted=3, handshakes=2, refused=0, accepted=4),
        ),
        ["2 migrations failed", "5 connections: 3", "3 to another listener", "4 connections"],
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
