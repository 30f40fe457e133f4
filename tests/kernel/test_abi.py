"""A record that Python lays out otherwise than C does not compile."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import ProgramRejected
from reuseport_tool.kernel import abi
from reuseport_tool.kernel.iterator import TcpListeners


@pytest.mark.parametrize("name", abi.SIZES)
def test_another_size_does_not_compile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(abi.SIZES, name, abi.SIZES[name] + 4)
    with pytest.raises(ProgramRejected) as caught:
        TcpListeners()
    assert "is another one in kernel/abi.py" in (caught.value.log or "")
