"""The table kernel × feature."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vagrant.qemu import kernels, matrix

# Stands for `python -m vagrant.qemu test NAME --report FILE`. It ends when its fellow has started.
STAND_IN = """#!/bin/bash
name=$4 report=$6
touch "$TOGETHER/$name"
while [ ! -e "$TOGETHER/debian-6.1" ] || [ ! -e "$TOGETHER/autolowat" ]; do sleep 0.05; done
echo "the output of $name"
[ "$name" = autolowat ] && exit 101
echo '{"version": "kernel 1", "results": {"proofs.json": "{\\"wakes\\": \\"no\\"}"}, "duration_s": 61.2}' > "$report"
exit 1
"""


def _row(name: str, doctor: dict[str, object], proofs: dict[str, str]) -> matrix.Row:
    results = {"doctor.json": json.dumps(doctor), "proofs.json": json.dumps(proofs)}
    kernel = kernels.find(name)
    return matrix.Row(
        kernel=kernel,
        version="linux-image 1",
        features=matrix._features(results),
        verdict="passed",
        duration_s=12.3,
        exit_code=0,
    )


def test_features_come_from_doctor_and_from_the_proofs() -> None:
    doctor = {"features": [{"name": "migration", "available": True}, {"name": "btf", "available": None}]}
    row = _row("debian-6.1", doctor, {"wakes": "no"})
    assert row.features == {"migration": "yes", "btf": "?", "wakes (proof)": "no"}


def test_a_kernel_that_was_not_asked_gets_a_dash() -> None:
    rows = [_row("debian-6.1", {}, {"wakes": "yes"}), _row("autolowat", {}, {"wakes": "yes", "rcvq": "yes"})]
    lines = matrix._table(rows).splitlines()
    assert lines[0] == "|  | debian-6.1 | autolowat |"
    assert "| rcvq (proof) | – | yes |" in lines
    assert lines[-1] == "| seconds | 12 | 12 |"


def test_results_that_a_guest_did_not_leave_are_no_features() -> None:
    assert matrix._features({}) == {}


def test_two_kernels_at_a_time_and_the_worst_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(matrix, "AT_A_TIME", 2)
    monkeypatch.setenv("TOGETHER", str(tmp_path))
    monkeypatch.setenv("REUSEPORT_TOOL_CACHE", str(tmp_path))
    assert matrix.run([kernels.find("debian-6.1"), kernels.find("autolowat")], complete=False) == 101
    said = capfd.readouterr().out
    assert "the output of debian-6.1\n" in said
    assert "the output of autolowat\n" in said
    assert "| wakes (proof) | no | – |" in said
    assert "| **verdict** | FAILED | VM lost |" in said
    assert "| seconds | 61 | 0 |" in said
    assert list((tmp_path / "runs").glob("vm-*")) == []
