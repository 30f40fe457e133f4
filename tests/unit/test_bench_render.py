from __future__ import annotations

import json

import pytest

from reuseport_tool.bench import reload as bench_reload
from reuseport_tool.bench import select as bench_select
from reuseport_tool.bench.select import _add_statistics, _Pace, _Samples
from reuseport_tool.bench.spread import percentile, relative, spread
from reuseport_tool.cli.main import run
from reuseport_tool.errors import MissingCapability
from reuseport_tool.models import BenchReload, BenchSelect, CloseSize, ReloadArm, Resets, SelectArm, Spread
from tests.records import some

EQUAL = Spread(median=1.0, low=1.0, high=1.0)
REPORT = BenchSelect(
    kernel="6.18",
    rounds=60,
    connections_per_round=512,
    statistics_rounds=10,
    arms=(
        some(SelectArm, program="none", listeners=16, connections_per_s=33000.0, relative=EQUAL, cpu_relative=EQUAL),
        some(
            SelectArm,
            program="hash",
            listeners=16,
            connections_per_s=32900.4,
            relative=Spread(median=0.997, low=0.99, high=1.004),
            cpu_relative=Spread(median=0.998, low=0.996, high=1.0),
            ns_per_run=120.5,
            ns_relative=1.149,
            runs_per_connection=1.0,
        ),
    ),
    duration_s=15.0,
)


def test_a_spread_is_median_and_quartiles() -> None:
    assert spread([0.9, 1.0, 1.1, 1.2, 0.8], 4) == Spread(median=1.0, low=0.9, high=1.1)
    assert relative([2.0, 9.0, 4.0], [1.0, 3.0, 4.0], 2) == Spread(median=2.0, low=1.5, high=2.5)
    assert percentile(range(101), 99) == 99


def test_statistics_are_for_each_run() -> None:
    samples = _Samples(paces=[_Pace(wall_ns=1, cpu_ns=1)])
    _add_statistics(samples, connections=100, runs=200, time_ns=5000)
    assert (samples.ns_per_run, samples.runs, samples.connections) == ([25.0], 200, 100)


def test_no_run_is_an_error() -> None:
    with pytest.raises(Exception, match="no run"):
        _add_statistics(_Samples(), connections=100, runs=0, time_ns=0)


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_select, "select", lambda rounds, connections, on_round: REPORT)
    assert run(["bench", "select"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["16", "none", "33000", "-", "-", "-", "-"] in lines
    assert ["16", "hash", "32900", "0.997", "±0.007", "0.998", "±0.002", "120.5", "1.15"] in lines


def test_json_and_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def select(rounds: int, connections: int, on_round: object) -> BenchSelect:
        asked.append((rounds, connections))
        return REPORT

    monkeypatch.setattr(bench_select, "select", select)
    assert run(["--json", "bench", "select", "--rounds", "3", "--connections", "7"]) == 0
    assert asked == [(3, 7)]
    report = json.loads(capsys.readouterr().out)
    assert report["arms"][1]["relative"] == {"median": 0.997, "low": 0.99, "high": 1.004}
    assert report["arms"][0]["ns_per_run"] is None


@pytest.mark.parametrize("option", [["--rounds", "1"], ["--connections", "0"], ["--rounds", "x"]])
def test_bad_numbers(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "select", *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_no_rights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def select(*_: object) -> BenchSelect:
        raise MissingCapability("not permitted", hint="run as root")

    monkeypatch.setattr(bench_select, "select", select)
    assert run(["bench", "select"]) == 3
    assert "run as root" in capsys.readouterr().err


RELOAD = BenchReload(
    kernel="6.18",
    rounds=5,
    clients=64,
    arms=(
        some(
            ReloadArm,
            name="plain",
            connections=953,
            answered=631,
            reset=322,
            resets=Resets(never_accepted=300, handshakes=20, refused=0, accepted=2),
            lost=Spread(median=66, low=62, high=69),
            longest_wait_ms=Spread(median=46.6, low=44, high=49),
            duration_s=Spread(median=0.05, low=0.05, high=0.07),
        ),
        some(ReloadArm, name="haproxy -x", detail="haproxy is not installed"),
    ),
    close_rounds=11,
    closes=(
        CloseSize(
            queued=256,
            program_us=Spread(median=214, low=211, high=215),
            minimal_us=Spread(median=204, low=202, high=209),
            sysctl_us=Spread(median=166, low=162, high=171),
            program_us_per_connection=0.84,
            sysctl_us_per_connection=0.65,
            relative=EQUAL,
            cpu_relative=EQUAL,
            minimal_relative=EQUAL,
            over_minimal=EQUAL,
        ),
    ),
    duration_s=33.0,
)


def test_reload_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def bench(*arguments: object, **_: object) -> BenchReload:
        asked.append(arguments)
        return RELOAD

    monkeypatch.setattr(bench_reload, "bench", bench)
    assert run(["bench", "reload", "--rounds", "3", "--clients", "8", "--close-rounds", "2"]) == 0
    assert asked == [(3, 8, 2, None)]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "plain 66.0 ±3.5 46.6 ±2.5 ms 0.05 ±0.01 s 953 0 322 0 0 0 322 2" in lines
    assert "haproxy -x haproxy is not installed" in lines
    assert "256 214.0 ±2.0 µs 0.84 µs 166.0 ±4.5 µs 0.65 µs" + " 1.000 ±0.000" * 4 in lines


@pytest.mark.parametrize("option", [["--rounds", "1"], ["--clients", "7"], ["--close-rounds", "1"]])
def test_bad_numbers_of_reload(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "reload", *option]) == 2
    assert option[0] in capsys.readouterr().err
