"""A short soak: the code of `make soak`, bounded to a few seconds."""

from __future__ import annotations

import pytest

from tests.soak import soak
from tests.soak.soak import Profile, Result

pytestmark = pytest.mark.slow

FAST, SLOW = Profile(0, 256), Profile(500, 2000)
MOVED = 100


def test_reloads_of_a_fast_server_lose_nothing(root: None) -> None:
    result = Result()
    soak.with_the_tool(result, 4, FAST)
    assert result.restarts == 4
    assert result.ledger.lost == 0, result
    assert result.ledger.answered > 4 * FAST.clients


def test_reloads_of_a_slow_server_lose_nothing(root: None) -> None:
    result = Result()
    # How much is queued at two stops depends on the machine, so there may be more of them.
    while result.migrated <= MOVED and result.restarts < 8:
        soak.with_the_tool(result, 2, SLOW)
    assert result.ledger.lost == 0, result
    assert result.queued > MOVED
    assert result.migrated > MOVED
    assert result.ledger.answered > SLOW.clients


def test_plain_restarts_lose(root: None) -> None:
    result = Result()
    soak.without_the_tool(result, 2, SLOW)
    assert result.ledger.lost > 100, result
    assert result.ledger.answered > SLOW.clients
