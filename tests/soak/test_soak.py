"""A short soak: the code of `make soak`, bounded to a few seconds."""

from __future__ import annotations

from tests.soak import soak
from tests.soak.soak import Result

CLIENTS = 64


def test_reloads_lose_nothing(root: None) -> None:
    result = Result()
    soak.with_the_tool(result, 7, CLIENTS)
    assert result.restarts == 7
    assert result.ledger.lost == 0, result
    assert result.ledger.answered > 5_000
    assert result.queued > 0
    assert result.migrated > 0


def test_plain_restarts_lose(root: None) -> None:
    result = Result()
    soak.without_the_tool(result, 7, CLIENTS)
    assert result.ledger.lost > 0, result
    assert result.ledger.answered > 0
