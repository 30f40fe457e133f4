"""Which strategy a reload takes on which kernel."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import Unsupported
from reuseport_tool.group import policy as policies
from reuseport_tool.models import Strategy
from reuseport_tool.reload import plan as reload_plan
from reuseport_tool.reload.plan import Plan, choose_strategy

MIGRATE, SYSCTL, DRAIN = Strategy.MIGRATE, Strategy.SYSCTL, Strategy.DRAIN


@pytest.mark.parametrize(
    ("works", "wakes", "asked", "taken", "warned"),
    [
        (True, True, None, MIGRATE, False),
        (True, True, SYSCTL, SYSCTL, False),
        (True, True, DRAIN, DRAIN, False),
        (True, False, None, DRAIN, True),
        (True, False, MIGRATE, MIGRATE, True),
        (True, False, DRAIN, DRAIN, False),
        (False, None, None, DRAIN, True),
        (False, None, DRAIN, DRAIN, False),
        (None, None, None, MIGRATE, True),
    ],
)
def test_strategy(
    monkeypatch: pytest.MonkeyPatch,
    works: bool | None,
    wakes: bool | None,
    asked: Strategy | None,
    taken: Strategy,
    warned: bool,
) -> None:
    monkeypatch.setattr(reload_plan.migration, "migration_works", lambda: works)
    monkeypatch.setattr(reload_plan.migration, "migration_wakes", lambda: wakes)
    monkeypatch.setattr(policies, "can_migrate", lambda: True)
    warnings: list[str] = []
    assert choose_strategy(Plan(strategy=asked), warnings.append) is taken
    assert bool(warnings) is warned


@pytest.mark.parametrize("asked", [MIGRATE, SYSCTL])
def test_a_kernel_that_cannot_migrate(monkeypatch: pytest.MonkeyPatch, asked: Strategy) -> None:
    monkeypatch.setattr(reload_plan.migration, "migration_works", lambda: False)
    with pytest.raises(Unsupported) as caught:
        choose_strategy(Plan(strategy=asked), print)
    assert caught.value.exit_code == 4
    assert "5.14" in (caught.value.hint or "")
