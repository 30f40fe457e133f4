"""sockets, destroy and bench sockets without a kernel: filters, tables, exit codes."""

from __future__ import annotations

import dataclasses
import io
import json
import time

import pytest
from rich.console import Console

from reuseport_tool.bench import sockets as bench_sockets
from reuseport_tool.bench.sockets import _arm
from reuseport_tool.cli import show
from reuseport_tool.cli.main import run
from reuseport_tool.cli.show import tables
from reuseport_tool.models import (
    BenchSockets,
    Destroy,
    Ending,
    Endpoint,
    Protocol,
    Socket,
    Sockets,
    SocketsArm,
    SocketsSize,
    SocketState,
    SocketTable,
    Spread,
)
from reuseport_tool.sockets import destroy
from reuseport_tool.sockets.destroy import DestroyEngine
from reuseport_tool.sockets.select import Filter
from tests.records import NGINX, some

ENDS = {"local": "10.0.0.1:80", "remote": "10.0.0.2:4000"}
QUEUES = {"receive_queue": 5, "send_queue": 0}
CONNECTION = some(
    Socket, protocol="tcp", state="established", **ENDS, cookie=77, **NGINX, idle_s=61.25, **QUEUES, generation=2
)
LISTENER = some(
    Socket, protocol="tcp", state="listen", local="0.0.0.0:80", cookie=78, **NGINX, accept_queue=3, backlog=511
)
LONG = dataclasses.replace(
    CONNECTION,
    local="[2001:db8:1111:2222:3333:4444:5555:6666%eth0]:54321",
    remote="[2001:db8:1111:2222:3333:4444:5555:7777]:54321",
)
SOCKETS = Sockets(
    netns="net:[1]", protocols=("tcp", "udp"), exactly_once=True, walked=5, walk_s=0.001, sockets=(CONNECTION, LISTENER)
)
ENDED = Destroy(
    netns="net:[1]",
    engine="bpf",
    dry_run=False,
    exactly_once=True,
    endings=(Ending(socket=CONNECTION, result="ended"), Ending(socket=LISTENER, result="gone")),
    listeners=2,
    request_sockets=0,
    time_wait=1,
)


def text(model: object, width: int = 80) -> str:
    stream = io.StringIO()
    tables.show(model, Console(file=stream, width=width, markup=False, highlight=False, soft_wrap=True))
    return stream.getvalue()


def test_a_line_for_each_where_it_fits() -> None:
    lines = [line.split() for line in text(SOCKETS, 100).splitlines()]
    assert lines[1] == [
        "tcp",
        "established",
        "10.0.0.1:80",
        "10.0.0.2:4000",
        "77",
        "4242",
        "nginx",
        "61.2s",
        "5/0",
        "2",
    ]
    assert lines[2] == ["tcp", "listen", "0.0.0.0:80", "-", "78", "4242", "nginx", "-", "3/511", "-"]
    assert "2 of 5 sockets. TCP and UDP: the kernel promises" in text(SOCKETS)


def test_two_lines_for_each_where_not() -> None:
    lines = text(dataclasses.replace(SOCKETS, sockets=(LONG,))).splitlines()
    assert lines[0] == f"tcp established {LONG.local} → {LONG.remote}"
    assert lines[1].split() == [
        "cookie",
        "77",
        "pid",
        "4242",
        "command",
        "nginx",
        "idle",
        "61.2s",
        "queues",
        "5/0",
        "gen",
        "2",
    ]


NAMED = dataclasses.replace(CONNECTION, command="a\udcff \U0001f600")


def test_a_table_is_shown_as_its_records_are() -> None:
    several = (CONNECTION, LISTENER, LONG, NAMED)
    listed = dataclasses.replace(SOCKETS, sockets=several)
    by_column = dataclasses.replace(SOCKETS, sockets=SocketTable.of(several))
    assert tuple(by_column.sockets) == several
    assert tuple(SocketTable.joined([SocketTable.of(several[:1]), SocketTable.of(several[1:])])) == several
    assert tuple(by_column.sockets[1:3]) == several[1:3]
    for width in (80, 240):
        assert text(by_column, width) == text(listed, width)
    for indent in (2, None):
        assert json.loads(show.to_json(by_column, indent)) == json.loads(show.to_json(listed, indent))
    lines = show.to_json(by_column).splitlines()
    assert sum('"cookie"' in line for line in lines) == len(several), "a line for each"
    assert json.loads(show.to_json(by_column))["sockets"][3]["command"] == "a\\xff \U0001f600"


def test_no_sockets() -> None:
    nothing = dataclasses.replace(SOCKETS, sockets=SocketTable.of(()))
    assert json.loads(show.to_json(nothing))["sockets"] == []
    assert "0 of 5 sockets" in text(nothing)


def test_a_row_fits_80_columns() -> None:
    assert max(map(len, text(SOCKETS).splitlines()[:3])) <= 80


@pytest.mark.parametrize("width", [20, 80, 240])
def test_100_000_sockets_are_shown_at_once(width: int) -> None:
    """In not much more CPU time than it takes to copy their fields."""
    many = dataclasses.replace(SOCKETS, sockets=(CONNECTION,) * 100_000)
    begun_s = time.thread_time()
    shown = text(many, width)
    shown_s = time.thread_time() - begun_s
    assert shown.count("10.0.0.1:80") == 100_000
    copied = [dataclasses.astuple(entry) for entry in many.sockets]
    copied_s = time.thread_time() - begun_s - shown_s
    assert len(copied) == 100_000
    assert shown_s < 6 * copied_s


@pytest.mark.parametrize(
    ("promise", "words"), [(True, "promises"), (False, "does not promise"), (None, "is not known")]
)
def test_the_promise(promise: bool | None, words: str) -> None:
    assert words in text(dataclasses.replace(SOCKETS, exactly_once=promise), 240)
    assert json.loads(show.to_json(dataclasses.replace(SOCKETS, exactly_once=promise)))["exactly_once"] is promise


def test_destroy() -> None:
    shown = text(ENDED, 240)
    assert "ended  tcp" in shown
    assert "1 ended, 1 gone; left alone: 2 listeners, 1 time_wait" in shown
    dry = dataclasses.replace(ENDED, dry_run=True, endings=(Ending(socket=CONNECTION, result="would-end"),))
    assert "would end 1 socket by bpf; add --yes to do it" in text(dry, 240)
    assert "no socket to end" in text(dataclasses.replace(ENDED, endings=()), 240)
    refused = dataclasses.replace(
        ENDED, endings=(Ending(socket=CONNECTION, result="refused", detail="Permission denied"),)
    )
    assert "refused: Permission denied" in text(refused, 240)


@pytest.mark.parametrize(("result", "code"), [("ended", 0), ("gone", 0), ("disconnected", 0), ("refused", 1)])
def test_exit_code_of_destroy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: str, code: int
) -> None:
    asked = []

    def fake(wanted: Filter, _root: object, *, act: bool, engine: DestroyEngine) -> Destroy:
        asked.append((wanted, act, engine))
        return dataclasses.replace(ENDED, endings=(Ending(socket=CONNECTION, result=result),))

    monkeypatch.setattr(destroy, "destroy", fake)
    words = [
        "--pid",
        "7",
        "--pid",
        "8",
        "--state",
        "CLOSE-WAIT",
        "--idle",
        "1.5",
        "--endpoint",
        "80",
        "--generation",
        "2",
    ]
    assert run(["--json", "destroy", *words, "--yes"]) == code
    expected = Filter(
        endpoint=Endpoint(protocol=Protocol.TCP, address=None, port=80),
        pids=(7, 8),
        generation=2,
        states=(SocketState.CLOSE_WAIT,),
        idle_s=1.5,
    )
    assert asked == [(expected, True, DestroyEngine.AUTO)]
    assert json.loads(capsys.readouterr().out)["endings"][0]["result"] == result


def test_no_filter_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["destroy", "--yes"]) == 2
    assert "at least one filter" in capsys.readouterr().err


def test_ratios_of_the_bench_are_of_rounds() -> None:
    times = {"walk": [1.0, 4.0, 9.0], "ss": [1.0, 2.0, 3.0]}
    assert _arm("walk", times) == SocketsArm(
        name="walk", milliseconds=4000.0, relative=Spread(median=2.0, low=1.5, high=2.5)
    )


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arms = (
        SocketsArm(name="walk", milliseconds=12.0, relative=Spread(median=0.8, low=0.7, high=0.9)),
        SocketsArm(name="ss", milliseconds=15.0, relative=Spread(median=1.0, low=1.0, high=1.0)),
    )
    report = BenchSockets(
        kernel="6.18",
        ss="ss utility",
        rounds=9,
        sizes=(SocketsSize(protocol="tcp", sockets=10_000, arms=arms),),
        duration_s=3.0,
    )
    monkeypatch.setattr(bench_sockets, "bench", lambda *_: report)
    assert run(["bench", "sockets"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["tcp", "10000", "walk", "12.0", "0.800", "±0.100"] in lines
    assert ["tcp", "10000", "ss", "15.0", "-"] in lines
