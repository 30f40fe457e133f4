"""What a reload shows while a step waits: for what, and for how long it has."""

from __future__ import annotations

import pytest
from rich.console import Console

from reuseport_tool.cli.show import reload_progress
from reuseport_tool.reload import rollback
from reuseport_tool.reload.run import STEPS


@pytest.mark.parametrize("step", [*STEPS, rollback.ROLL_BACK])
def test_every_step_says_what_it_waits_for(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = reload_progress._Waiting(step, since_s=100.0)
    monkeypatch.setattr(reload_progress.time, "monotonic", lambda: 112.4)
    shown = waiting.__rich__().plain
    assert shown.startswith(f"{step}: ")
    assert shown.endswith(", 12 s")
    assert Console(width=80).measure(waiting).maximum <= 78
