"""The name of a network namespace in pins is never that of an earlier one, though inodes are used again."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import netns
from reuseport_tool.waiting import wait_until


def _without_cookies() -> int:
    raise Unsupported("no cookies")


@pytest.mark.parametrize("with_cookies", [True, False], ids=["cookies", "before Linux 5.14"])
def test_a_namespace_with_the_inode_of_a_gone_one_has_another_key(
    with_cookies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_cookies:
        monkeypatch.setattr(netns, "cookie", _without_cookies)
    keys: dict[int, str] = {}

    def repeats() -> bool:
        with netns.throw_away():
            inode, key = netns.identity(), netns.key()
            assert netns.key() == key
        assert keys.get(inode) != key
        known = inode in keys
        keys[inode] = key
        return known

    assert wait_until(repeats, 30.0)
