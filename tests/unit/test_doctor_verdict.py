from __future__ import annotations

import json

import pytest

from reuseport_tool.check import doctor, udp_modes
from reuseport_tool.cli.main import run
from reuseport_tool.models import Feature
from reuseport_tool.probes import features, misc
from reuseport_tool.probes.engine import Probe

NEEDED = [
    "BCC",
    "the tool's program",
    "migration by program",
    "migration wakes readers",
    "pidfd_getfd",
    "bpffs",
]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool | None]:
    """Make every feature's answer what this says; a test changes it."""
    found: dict[str, bool | None] = {
        **{probe.name: True for probe in features.PROBES},
        misc.BPFFS: True,
        doctor._OUR_PROGRAM: True,
        **{probe.name: True for probe in udp_modes.PROBES},
    }

    def answer(probe: Probe) -> Feature:
        return Feature(
            name=probe.name, available=found[probe.name], detail="as the test says", minimum_kernel=probe.since
        )

    monkeypatch.setattr(Probe, "answer", answer)
    return found


def test_the_names_of_what_is_needed_are_names_of_features(answers: dict[str, bool | None]) -> None:
    names = [feature.name for feature in doctor.doctor(None).features]
    assert set(NEEDED) <= set(names)
    assert len(set(names)) == len(names)


def test_all_present(answers: dict[str, bool | None], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "works here" in shown
    assert all(name in shown for name in answers)
    assert "✗  BTF" not in shown


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize(
    ("answer", "verdict", "code"), [(False, "does not work here", 4), (None, "could not be tried", 3)]
)
def test_what_migrate_needs(
    answers: dict[str, bool | None],
    capsys: pytest.CaptureFixture[str],
    name: str,
    answer: bool | None,
    verdict: str,
    code: int,
) -> None:
    answers[name] = answer
    assert run(["doctor"]) == code
    shown = capsys.readouterr().out
    assert verdict in shown
    assert f"{'✗' if answer is False else '?'}  {name}" in shown


def test_a_feature_that_migrate_does_not_need(
    answers: dict[str, bool | None], capsys: pytest.CaptureFixture[str]
) -> None:
    answers["bpf_sock_destroy"] = False
    assert run(["doctor"]) == 0
    assert "✗  bpf_sock_destroy" in capsys.readouterr().out


def test_json(answers: dict[str, bool | None], capsys: pytest.CaptureFixture[str]) -> None:
    answers["bpffs"] = None
    assert run(["--json", "doctor"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["missing"] == ["bpffs"]
    assert {"name": "bpffs", "available": None, "detail": "as the test says", "minimum_kernel": "4.4"} in report[
        "features"
    ]
    assert {capability["name"] for capability in report["capabilities"]} == {
        "CAP_BPF",
        "CAP_NET_ADMIN",
        "CAP_PERFMON",
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
    }
