"""Every verb hands its options to its job, prints the report as the contract says, and refuses unknown options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from docs import generate
from reuseport_tool import models
from reuseport_tool.cli import main
from reuseport_tool.cli import status as cli_status
from reuseport_tool.group.policy import FlowChoice
from reuseport_tool.kernel.flow_map import ENTRIES
from reuseport_tool.models import CheckedWay, Engine, FlowMode, Policy, Protocol, SocketState, parse_endpoint
from reuseport_tool.sockets.select import Filter
from tests.records import some
from tests.unit.test_cli import VERBS

CONTRACT = jsonschema.Draft202012Validator(generate.schema())
WEB, DNS = parse_endpoint("80"), parse_endpoint("udp://:53")
ANY: Any = type("Any", (), {"__eq__": lambda self, _: True, "__hash__": None})()  # progress, and the like
QUIC = FlowChoice(mode=FlowMode.QUIC, entries=2048)
BY_ADDRESS = FlowChoice(mode=FlowMode.ADDRESS, entries=ENTRIES)
SLOT = {"generation": 2, "slot": 3}

Call = tuple[str, type, tuple[object, ...], dict[str, object]]


def call(name: str, report: type, *arguments: object, **options: object) -> Call:
    """Of a function of a job, which returns such a report."""
    return name, report, arguments, options


CALLS = {
    "doctor": call("check.doctor.doctor", models.Doctor, None),
    "attach 80": call("group.attach.attach", models.AttachReport, WEB, None, None, None, 0.0, None),
    "attach 80 --policy cpu --wait 1m": call(
        "group.attach.attach", models.AttachReport, WEB, Policy.CPU, None, None, 60.0, None
    ),
    "attach 80 --program a.c": call(
        "group.attach.attach", models.AttachReport, WEB, None, Path("a.c"), None, 0.0, None
    ),
    "attach udp://:53 --flows address": call(
        "group.attach.attach", models.AttachReport, DNS, None, None, None, 0.0, BY_ADDRESS
    ),
    "attach udp://:53 --flows quic --flow-entries 2048": call(
        "group.attach.attach", models.AttachReport, DNS, None, None, None, 0.0, QUIC
    ),
    "attach 80 --repair --wait 2": call("group.repair.repair", models.AttachReport, WEB, None, 2.0),
    "detach 80": call("group.detach.detach", models.DetachReport, WEB, None, 0.0),
    "detach --all": call("group.detach.detach_all", models.DetachReport, None, 0.0),
    "detach --gone --wait 3": call("group.detach.detach_gone", models.DetachReport, None, 3.0),
    "map list": call("group.slots.list_maps", models.Maps, None, None),
    "map show 80": call("group.slots.list_maps", models.Maps, WEB, None),
    "map add 80 --generation 2 --slot 3 --pid 4": call(
        "group.slots.add", models.MapChanges, WEB, None, **SLOT, pid=4, cookie=None
    ),
    "map remove 80 --generation 2 --slot 3": call("group.slots.remove", models.MapChanges, WEB, None, **SLOT),
    "map switch 80 2 --force": call("group.slots.switch", models.MapChanges, WEB, None, generation=2, force=True),
    "flows udp://:53 --generation 2 --limit 5": call("group.flows.list_flows", models.Flows, DNS, None, 2, 5),
    "migrate-req": call("group.migrate_req.migrate_req", models.MigrateReq, None),
    "migrate-req on": call("group.migrate_req.migrate_req", models.MigrateReq, True),
    "migrate-req off": call("group.migrate_req.migrate_req", models.MigrateReq, False),
    "sockets --protocol udp --state unconnected --older-than 5": call(
        "sockets.select.sockets",
        models.Sockets,
        Filter(protocol=Protocol.UDP, states=(SocketState.UNCONNECTED,), older_than_s=5.0),
        None,
    ),
    "autolowat attach --cgroup /c --framing rpc --ports 80-81 --engine solo": call(
        "autolowat.attachment.attach", models.AutolowatAttachment, Path("/c"), "rpc", (80, 81), Engine.SOLO, None
    ),
    "autolowat attach --cgroup /c --framing rpc": call(
        "autolowat.attachment.attach", models.AutolowatAttachment, Path("/c"), "rpc", (), None, None
    ),
    "autolowat detach --cgroup /c": call("autolowat.attachment.detach", models.AutolowatDetached, Path("/c"), None),
    "autolowat status": call("autolowat.attachment.status", models.AutolowatStatus, None),
    "check hot-reload --connections 2 --strategy close --strategy sysctl": call(
        "check.hot_reload.check", models.CheckHotReload, None, 2, (CheckedWay.CLOSE, CheckedWay.SYSCTL), ANY
    ),
    "check hot-reload": call("check.hot_reload.check", models.CheckHotReload, None, 4, tuple(CheckedWay), ANY),
    "check udp-reload": call("check.udp_reload.check", models.CheckUdpReload, None, ANY),
    "check rpc-framing --engine native": call("check.rpc_framing.check", models.CheckRpcFraming, Engine.NATIVE, ANY),
    "check rpc-framing": call("check.rpc_framing.check", models.CheckRpcFraming, None, ANY),
    "bench sockets --sockets 9 --sockets 5 --rounds 2": call(
        "bench.sockets.bench", models.BenchSockets, [5, 9], tuple(Protocol), 2, ANY
    ),
    "bench sockets --protocol udp --sockets 5": call(
        "bench.sockets.bench", models.BenchSockets, [5], (Protocol.UDP,), 9, ANY
    ),
    "bench speed --rounds 2 --workers 3 --addresses 4": call(
        "bench.speed.bench", models.BenchSpeed, 2, 3, 4, None, ANY
    ),
    "bench udp --rounds 2 --datagrams 3 --flows 9 --flows 4": call(
        "bench.udp.bench", models.BenchUdp, 2, 3, [4, 9], ANY
    ),
    "bench rpc-framing --rounds 2 --cpus 2": call("bench.rpc_framing.bench", models.BenchRpcFraming, 2, 2, ANY),
    "compile --output /o --program a.c": call("programs.fill.fill", models.Filled, Path("/o"), (Path("a.c"),), ANY),
}


def in_place_of(monkeypatch: pytest.MonkeyPatch, name: str, report: object) -> list[tuple[object, object]]:
    """The calls of a function of ours, which returns this instead."""
    calls: list[tuple[object, object]] = []

    def called(*arguments: object, **options: object) -> object:
        calls.append((arguments, options))
        return report

    monkeypatch.setattr(f"reuseport_tool.{name}", called)
    return calls


@pytest.mark.parametrize("line", CALLS)
def test_a_verb_calls_its_job_and_prints_the_report(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, report, arguments, options = CALLS[line]
    is_checked = "ok" in report.__dataclass_fields__
    calls = in_place_of(monkeypatch, name, some(report, **({"ok": True} if is_checked else {})))
    assert main.run([*line.split(), "--json"]) == 0
    assert calls == [(arguments, options)]
    CONTRACT.validate(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("line", "name", "report"),
    [
        ("check hot-reload", "check.hot_reload.check", some(models.CheckHotReload)),
        ("check udp-reload", "check.udp_reload.check", some(models.CheckUdpReload)),
        ("check rpc-framing", "check.rpc_framing.check", some(models.CheckRpcFraming)),
    ],
)
def test_a_check_that_is_not_ok_exits_with_1(
    line: str, name: str, report: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of(monkeypatch, name, report)
    assert main.run([*line.split(), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


class FakeObserver:
    """In the place of group.status.Observer."""

    def __init__(self, status: models.Status) -> None:
        self._status = status

    def __enter__(self) -> FakeObserver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> models.Status:
        return self._status


PROBLEM = some(models.Problem, kind=models.ProblemKind.STALE)


@pytest.mark.parametrize(
    ("options", "problems", "code"), [("", (PROBLEM,), 0), ("--check", (), 0), ("--check", (PROBLEM,), 1)]
)
def test_status_check_is_an_exit_code(
    options: str,
    problems: tuple[models.Problem, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = some(models.Group, endpoint="tcp://*:80", problems=problems)
    found = some(models.Status, groups=(group,))
    asked: list[tuple[object, object]] = []
    monkeypatch.setattr(cli_status, "Observer", lambda *place: asked.append(place) or FakeObserver(found))
    assert main.run(["status", "80", *options.split(), "--json"]) == code
    assert asked == [(WEB, None)]
    printed = json.loads(capsys.readouterr().out)
    CONTRACT.validate(printed)
    assert len(printed["groups"][0]["problems"]) == len(problems)


EXCLUDING = [
    "attach 80 --flow-entries 2048",
    "attach 80 --flows none --flow-entries 2048",
    "attach 80 --follow --flows quic",
    "attach 80 --policy cpu --program a.c",
    "attach 80 --repair --policy cpu",
    "attach 80 --repair --follow",
    "detach",
    "detach 80 --all",
    "detach --all --gone",
    "status --watch --check",
    "reload 80 --unit web@ --new-pid 7",
    "reload 80 --unit web@ --dry-run",
    "reload 80 --resume --new-pid 7",
    "reload 80 90 --abort",
]


@pytest.mark.parametrize("line", EXCLUDING)
def test_what_excludes_each_other_is_told(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*line.split(), "--json"]) == 2
    error = json.loads(capsys.readouterr().err)
    CONTRACT.validate(error)
    assert "--" in error["message"]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_an_unknown_option_is_a_usage_error_that_names_the_help(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*verb, "--nonsense", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)
    CONTRACT.validate(error)
    assert (error["code"], error["hint"]) == (2, f"see: reuseport-tool {' '.join(verb)} --help")
    assert "--nonsense" in error["message"]


def test_completion_prints_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", "zsh"]) == 0
    assert "_REUSEPORT_TOOL_COMPLETE=zsh_complete" in capsys.readouterr().out


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[Any, Any]]]:
    report = some(models.Reload, resets=some(models.Resets))

    def of(name: str) -> list[tuple[Any, Any]]:
        return in_place_of(monkeypatch, f"reload.transaction.{name}", report)

    return of


def test_reload_makes_a_plan_of_its_options(
    reloads: Callable[[str], list[tuple[Any, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = reloads("reload")
    line = "reload 80 --policy cpu --strategy drain --flows quic --wait 3 --stop-signal QUIT --canary 5,100 --json"
    assert main.run([*line.split(), "--old-pid", "7", "--on-start", "true", "--", "server", "--json"]) == 0
    CONTRACT.validate(json.loads(capsys.readouterr().out))
    [((endpoints, plan, root, _), _)] = calls
    assert (endpoints, root) == ((WEB,), None)
    assert (plan.command, plan.old_pids, plan.canary) == (("server", "--json"), (7,), (5.0, 100.0))
    assert (plan.policy, plan.strategy, plan.flows) == (Policy.CPU, models.Strategy.DRAIN, FlowMode.QUIC)
    assert (plan.lock_timeout_s, plan.stop_signal.name) == (3.0, "SIGQUIT")
    assert [(hook.step, hook.command) for hook in plan.hooks] == [("start", "true")]


@pytest.mark.parametrize("how", ["resume", "abort"])
def test_a_killed_reload_is_gone_on_with(
    how: str, reloads: Callable[[str], list[tuple[Any, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = reloads(how)
    assert main.run(["reload", "80", f"--{how}", "--wait", "2", "--json"]) == 0
    [((endpoint, root, _, wait_s), _)] = calls
    assert (endpoint, root, wait_s) == (WEB, None, 2.0)
    CONTRACT.validate(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"resets": some(models.Resets, handshakes=1)}, 1),
        ({"resets": None}, 0),
        ({"lost": some(models.Lost, migrate_failures=1)}, 1),
        ({"datagrams": (some(models.HandedOver, drops_new=1),)}, 1),
    ],
    ids=["reset", "not measured", "migration failed", "datagram dropped"],
)
def test_what_was_lost_is_the_exit_code(
    change: dict[str, object], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of(monkeypatch, "reload.transaction.reload", some(models.Reload, **change))
    assert main.run(["reload", "80", "--json", "--", "server"]) == code
    CONTRACT.validate(json.loads(capsys.readouterr().out))


def test_a_dry_run_exits_as_the_reload_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = in_place_of(monkeypatch, "reload.transaction.dry_run", some(models.DryRun, code=7))
    assert main.run(["reload", "80", "--dry-run", "--json", "--", "server"]) == 7
    assert len(calls) == 1
    CONTRACT.validate(json.loads(capsys.readouterr().out))


def test_a_follower_prints_each_event(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def follow(endpoint: object, policy: object, program: object, root: object, tell: Callable[..., None]) -> None:
        asked.append((endpoint, policy, program, root))
        tell(some(models.FollowEvent, event=models.Happening.DETACHED))

    asked: list[object] = []
    monkeypatch.setattr("reuseport_tool.follow.run.follow", follow)
    assert main.run(["attach", "80", "--follow", "--policy", "hash", "--json"]) == 0
    assert asked == [(WEB, Policy.HASH, None, None)]
    event = json.loads(capfd.readouterr().out)
    CONTRACT.validate(event)
    assert event["at"] > 0
