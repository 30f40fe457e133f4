"""Imports only go down: cli → jobs → group → probes → kernel; the modules of LEAVES may be imported anywhere.

A job imports no other job, but `check` and `bench` may run them, and `programs` compiles for all.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "reuseport_tool"

# Which of our layers, and which of the third-party modules, a layer may import.
LEAVES = {"errors", "models", "names", "record", "record_json", "closing", "patience", "waiting"}
BELOW_JOBS = LEAVES | {"kernel", "probes", "group"}
JOBS = {"reload", "follow", "sockets", "autolowat", "check", "bench", "programs"}
OURS = {
    "errors": set(),
    "closing": set(),
    "names": set(),
    "patience": set(),
    "record": set(),
    "record_json": set(),
    "waiting": set(),
    "models": {"errors", "models", "record"},
    "kernel": LEAVES | {"kernel"},
    "probes": LEAVES | {"kernel", "probes"},
    "group": BELOW_JOBS,
    **{job: BELOW_JOBS | {job} for job in JOBS},
    "check": BELOW_JOBS | JOBS,
    "bench": BELOW_JOBS | JOBS,
    "programs": BELOW_JOBS | JOBS,
    "cli": BELOW_JOBS | JOBS | {"cli", ""},
}
FOREIGN_HOME = {
    "ctypes": {"kernel"},
    "bcc": {"kernel"},
    "pyroute2": {"kernel"},
    "scapy": {"kernel"},
    "click": {"cli"},
    "rich": {"cli/show"},
}


# What a distribution must have for the tool: dependencies of pyproject.toml, and BCC.
THIRD_PARTY = {*FOREIGN_HOME, "prometheus_client"} - {"ctypes"}


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name[:2] != "__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_down(path: Path) -> None:
    layer = path.parts[0].removesuffix(".py")
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "reuseport_tool":
            target = rest.split(".")[0]
            allowed = OURS[layer]
            assert target in allowed or (target == "__version__" and "" in allowed), f"{path} imports {name}"
        elif top in FOREIGN_HOME:
            homes = {layer, *map(str, path.parents)}
            assert homes & FOREIGN_HOME[top], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_only_what_distributions_have_is_imported(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    assert tops - set(sys.stdlib_module_names) <= THIRD_PARTY | {"reuseport_tool"}


def test_the_rule_sees_every_module() -> None:
    assert {path.parts[0].removesuffix(".py") for path in modules()} == set(OURS)
