"""The table kernel × feature."""

from __future__ import annotations

import json

from vagrant.qemu import kernels, matrix


def _row(name: str, doctor: dict[str, object], proofs: dict[str, str]) -> matrix.Row:
    results = {"doctor.json": json.dumps(doctor), "proofs.json": json.dumps(proofs)}
    kernel = kernels.find(name)
    return matrix.Row(kernel, "linux-image 1", matrix._features(results), "passed", 12.3, 0)


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
