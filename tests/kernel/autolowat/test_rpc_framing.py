"""check rpc-framing and bench rpc-framing."""

from __future__ import annotations

import os

import pytest

from reuseport_tool.bench import rpc_framing as bench_rpc_framing
from reuseport_tool.check import rpc_framing as check_rpc_framing
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import autolowat as kernel
from reuseport_tool.models import Engine
from tests.kernel.autolowat.frames import is_here
from tests.tool import Tool

pytestmark = pytest.mark.needs("AutoLOWAT solo")


@pytest.mark.parametrize("engine", [pytest.param(Engine.NATIVE, marks=pytest.mark.vm), Engine.SOLO])
def test_every_case_of_the_check(root: None, engine: Engine) -> None:
    if not is_here(engine):
        return
    report = check_rpc_framing.check(engine, lambda *_: None)
    assert [case for case in report.cases if not case.ok] == []
    assert {case.family for case in report.cases} == {"ipv4", "ipv6"}


def test_check_rpc_framing(tool: Tool) -> None:
    report = tool.ok("check", "rpc-framing")
    assert report["ok"]
    assert report["engine"] == (Engine.SOLO if kernel.missing_for_native() else Engine.NATIVE)
    assert sum(case["frames"] for case in report["cases"]) > 300
    assert all(case["stalls"] == 0 for case in report["cases"])


def test_bench(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # A frame larger than the receive buffer: a plain reader must be woken for it more than once, however busy the CPU.
    monkeypatch.setattr(bench_rpc_framing, "SIZES", ((64, 1, 20), (1 << 20, 64, 5)))
    allowed = os.sched_getaffinity(0)
    single, several = bench_rpc_framing.bench(5, 1, lambda *_: None).sizes
    assert os.sched_getaffinity(0) == allowed
    wakeups = {arm.name: arm.wakeups_per_frame for arm in several.arms}
    assert wakeups["solo"] < wakeups["off"]
    assert {arm.name for arm in single.arms} == set(wakeups) >= {"off", "rcvlowat", "solo"}
    assert all(arm.wakeups_per_frame >= 1 for size in (single, several) for arm in size.arms)


def test_bench_on_more_cpus_than_there_are(root: None) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(allowed)])
    try:
        with pytest.raises(ToolError, match="2 CPUs are needed, and this process may use 1"):
            bench_rpc_framing.bench(2, 2, lambda *_: None)
    finally:
        os.sched_setaffinity(0, allowed)
