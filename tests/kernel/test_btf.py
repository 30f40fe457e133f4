"""What we read of the kernel's types is what bpftool reads of them."""

from __future__ import annotations

import collections
import json
import random
import shutil
import subprocess
from typing import Any

import pytest

from reuseport_tool.errors import Unsupported
from reuseport_tool.kernel import btf

VMLINUX = "/sys/kernel/btf/vmlinux"
SAMPLE = 500


@pytest.fixture(scope="module")
def types() -> list[dict[str, Any]]:
    assert shutil.which("bpftool"), "apt-get install bpftool"
    dump = subprocess.run(["bpftool", "-j", "btf", "dump", "file", VMLINUX], stdout=subprocess.PIPE, check=True)
    return list(json.loads(dump.stdout)["types"])


def test_every_enumerator(types: list[dict[str, Any]]) -> None:
    expected: dict[str, set[int]] = {}
    for entry in types:
        if entry["kind"] in ("ENUM", "ENUM64"):
            for constant in entry["values"]:
                # bpftool 7.1 extends the sign of an unsigned 32-bit constant.
                narrow = entry["kind"] == "ENUM" and entry["encoding"] == "UNSIGNED"
                value = constant["val"] & 0xFFFFFFFF if narrow else constant["val"]
                expected.setdefault(constant["name"], set()).add(value)
    assert len(expected) > 1000
    assert btf.enumerators() == expected


def test_one_enumerator(types: list[dict[str, Any]]) -> None:
    constants = {value["name"] for entry in types if entry["kind"] in ("ENUM", "ENUM64") for value in entry["values"]}
    others = {entry["name"] for entry in types if entry["kind"] == "FUNC"} - constants
    assert btf.enumerator("BPF_MAP_TYPE_HASH") == 1
    for name in random.Random(1).sample(sorted(others), SAMPLE):
        assert btf.enumerator(name) is None, name
    ambiguous = next(name for name, values in btf.enumerators().items() if len(values) > 1)
    with pytest.raises(Unsupported, match=ambiguous):
        btf.enumerator(ambiguous)


def test_offsets(types: list[dict[str, Any]]) -> None:
    """Of structs whose name is there once: the kernel has static ones of equal names."""
    structs = [entry for entry in types if entry["kind"] == "STRUCT" and entry["name"] != "(anon)"]
    count = collections.Counter(entry["name"] for entry in structs)
    for entry in random.Random(2).sample([entry for entry in structs if count[entry["name"]] == 1], SAMPLE):
        for member in entry["members"]:
            if member["name"] != "(anon)":
                assert btf.offset(entry["name"], member["name"]) == member["bits_offset"] // 8, (entry, member)
