"""`check udp-reload`: a case that does not come out as expected is said. tests/check_udp runs the cases."""

from __future__ import annotations

import pytest

from reuseport_tool.check.udp_reload import Story, Trial


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
