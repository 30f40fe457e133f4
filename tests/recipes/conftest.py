"""Collects the figures of all recipes and prints them as one table."""

from __future__ import annotations

import pytest

from reuseport_tool.bench.load import Ledger


class Figures:
    """What each arm of each server lost."""

    def __init__(self) -> None:
        self._arms: dict[str, dict[str, Ledger]] = {}

    def add(self, server: str, arm: str, ledger: Ledger) -> None:
        print(server, arm, ledger)
        self._arms.setdefault(server, {})[arm] = ledger

    def table(self) -> list[str]:
        heads = ("server", "lost by plain restarts", "lost by reloads")
        rows = [heads, ("---",) * len(heads)]
        rows += [(name, *(_lost(arms.get(arm)) for arm in ("plain", "reload"))) for name, arms in self._arms.items()]
        return [f"| {' | '.join(row)} |" for row in rows]


def _lost(ledger: Ledger | None) -> str:
    return "not measured" if ledger is None else f"{ledger.lost:,} of {ledger.connections:,}"


_FIGURES = Figures()


@pytest.fixture
def figures() -> Figures:
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("figures")
    for line in _FIGURES.table():
        terminalreporter.write_line(line)
