"""A verb imports what it needs: libraries that take longer to import than the verb to run are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reuseport_tool import models
from reuseport_tool.cli.main import _VERBS

_PROGRAM = """
import contextlib, io, json, sys
from reuseport_tool.cli.main import run
out, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
    with contextlib.suppress(SystemExit):  # of click's completion
        run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = ("bcc", "pyroute2", "scapy", "asyncio", "msgspec", "rich.progress", "rich.live")
OTHER_JOBS = tuple(f"reuseport_tool.{job}" for job in ("reload", "follow", "autolowat", "check", "bench", "probes"))
VERBS = [
    ("status",),
    ("attach", "1"),
    ("detach", "1"),
    ("map", "list"),
    ("sockets", "--protocol", "udp"),
    ("flows", "udp://1"),
    ("migrate-req",),
]
OF_OTHER_VERBS = {
    "status": ("group.attach", "group.repair", "kernel.resets", "models.sockets", "record_json"),
    "attach": ("group.status", "group.repair", "kernel.resets", "models.sockets", "record_json"),
    "sockets": ("group.attach", "group.status", "models.maps", "record_json"),
}


def imported(*arguments: str) -> list[str]:
    """The modules that a command line has imported when it is done, whatever came of it."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    modules: list[str] = json.loads(done.stdout)
    return modules


def those_of(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if any(name == package or name.startswith(package + ".") for package in packages)]


@pytest.fixture(scope="module")
def warm() -> None:
    """Fill the cache: what is not in it is compiled, by BCC."""
    for verb in VERBS:
        imported(*verb)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_heavy_libraries_and_other_jobs_are_left_alone(verb: tuple[str, ...], warm: None) -> None:
    assert those_of(imported(*verb), HEAVY + OTHER_JOBS) == []


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_json_needs_no_rich(verb: tuple[str, ...], warm: None) -> None:
    assert those_of(imported("--json", *verb), ("rich",)) == []


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb[0] in OF_OTHER_VERBS], ids=" ".join)
def test_what_only_other_verbs_use_is_left_alone(verb: tuple[str, ...], warm: None) -> None:
    others = tuple(f"reuseport_tool.{name}" for name in OF_OTHER_VERBS[verb[0]])
    assert those_of(imported(*verb), others) == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)], ids=" ".join)
def test_a_list_of_the_verbs_imports_none(arguments: tuple[str, ...]) -> None:
    verbs = tuple(f"reuseport_tool.cli.{verb.module}" for verb in _VERBS.values())
    assert those_of(imported(*arguments), (*verbs, *HEAVY, "rich", "reuseport_tool.kernel")) == []


def test_completion_of_a_verb_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COMPLETE", "bash_complete"), ("WORDS", "reuseport-tool s"), ("CWORD", "1")):
        prefix = "_REUSEPORT_TOOL_" if name == "COMPLETE" else "COMP_"
        monkeypatch.setenv(f"{prefix}{name}", value)
    verbs = tuple(f"reuseport_tool.cli.{verb.module}" for verb in _VERBS.values())
    done = imported()
    assert those_of(done, ("click",))
    assert those_of(done, (*verbs, "rich", "reuseport_tool.kernel")) == []


def test_a_reload_needs_no_progress_bar_without_a_terminal() -> None:
    """Not even to look for the old server, which is not there."""
    words = ("reload", "1", "--new-pid", str(os.getpid()))
    imported(*words)  # what is not in the cache is compiled, by BCC
    assert those_of(imported(*words), (*HEAVY, "rich.status")) == []
    assert those_of(imported("--json", *words), ("rich",)) == []


def test_every_record_has_a_home() -> None:
    assert sorted(" ".join(models._HOMES.values()).split()) == sorted(models.__all__)


def test_the_rule_sees_imports() -> None:
    assert those_of(imported("reload", "--help"), OTHER_JOBS)
    assert those_of(imported("status"), ("rich",))
