"""`check udp-reload`: every case comes out as expected, and a case that does not is said."""

from __future__ import annotations

import pytest

from reuseport_tool.check.udp_reload import STORIES, Story, Trial
from tests.tool import Tool


@pytest.mark.needs("TCP iterator", "detach from a group")
def test_every_case_is_as_expected(tool: Tool) -> None:
    report = tool.run("check", "udp-reload").json
    assert [case for case in report["cases"] if not case["ok"]] == []
    assert report["ok"]
    assert len(report["cases"]) == 2 * len(STORIES)
    assert all(case["lost"] for case in report["cases"] if case["expected"] == "lose")
    assert {case["flows"] for case in report["cases"]} >= {"plain", "none", "address"}


@pytest.mark.parametrize(
    ("expected", "code", "lost", "evicted", "said"),
    [
        ("survive", 0, 0, 0, ""),
        ("survive", 0, 1, 0, "not answered"),
        ("survive", 1, 0, 0, "exits with 1"),
        ("lose", 0, 0, 0, "proves nothing"),
        ("lose", 0, 5, 0, ""),
        ("reported", 1, 5, 0, "no evicted flow"),
        ("reported", 1, 5, 2, ""),
        ("rolled back", 8, 1, 0, "not answered"),
        ("refused", 0, 0, 0, "exits with 0"),
    ],
)
def test_a_verdict(expected: str, code: int, lost: int, evicted: int, said: str) -> None:
    trial = Trial(Story(name="a story", way="none", expected=expected), "ipv4", "/nowhere")
    trial.sent, trial.lost, trial.code, trial.evicted = 10, lost, code, evicted
    verdict = trial.verdict()
    assert said in verdict
    assert bool(said) == bool(verdict)
