from __future__ import annotations

import pytest

from reuseport_tool.kernel import capabilities


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("0000000000000000", set()),
        ("0000000000001000", {"CAP_NET_ADMIN"}),
        ("0000008000000000", {"CAP_BPF"}),
        ("0000004000080000", {"CAP_PERFMON", "CAP_SYS_PTRACE"}),
        ("0000000000200000", {"CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON"}),
    ],
)
def test_effective(mask: str, expected: set[str]) -> None:
    status = f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\nCapBnd:\tffffffffffffffff\n"
    assert capabilities.effective(status) == expected


def test_effective_reads_the_own_process() -> None:
    assert capabilities.effective() <= set(capabilities._NUMBERS)


@pytest.mark.parametrize(
    ("held", "hint"),
    [
        ({"CAP_BPF"}, "run as root, or grant CAP_PERFMON"),
        ({"CAP_NET_ADMIN"}, "run as root, or grant CAP_BPF and CAP_PERFMON"),
        ({"CAP_BPF", "CAP_PERFMON"}, "run as root, or grant CAP_BPF and CAP_PERFMON"),
    ],
)
def test_a_hint_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, held: set[str], hint: str) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset(held))
    assert capabilities.hint("CAP_BPF", "CAP_PERFMON") == hint
