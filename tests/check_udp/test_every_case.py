"""`check udp-reload` as a whole, by `make check-udp` and not by `make test`: its cases depend on the machine's pace.

Some clients have 0.6 s in which the old server must have answered, and a server of some cases starts meanwhile. Where
other processes take the CPUs, single cases come out otherwise.
"""

from __future__ import annotations

import pytest

from reuseport_tool.check.udp_reload import STORIES
from tests.tool import Tool


@pytest.mark.needs("TCP iterator", "detach from a group")
def test_every_case_is_as_expected(tool: Tool) -> None:
    done = tool.run("check", "udp-reload")
    assert done.out, done.err
    report = done.json
    assert [case for case in report["cases"] if not case["ok"]] == []
    assert report["ok"]
    assert len(report["cases"]) == 2 * len(STORIES)
    assert all(case["lost"] for case in report["cases"] if case["expected"] == "lose")
    assert {case["flows"] for case in report["cases"]} >= {"plain", "none", "address"}
