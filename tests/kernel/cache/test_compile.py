"""`compile` fills a folder with which the tool runs on a machine that has no BCC."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import PORT, ask, server_command
from tests.tool import Tool

Start = Callable[..., subprocess.Popen[str]]
NO_BCC = "import sys; sys.modules['bcc'] = None; from reuseport_tool.cli.main import main; main()"


def run(tool: Tool, cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_BCC, *tool.command(*arguments)[3:]]
    environment = {**os.environ, "REUSEPORT_TOOL_CACHE": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)


@pytest.mark.usefixtures("end_owners")
def test_a_filled_folder_is_all_that_is_needed(tool: Tool, server: Start, tmp_path: Path) -> None:
    own = tmp_path / "mine.c"
    own.write_text('#include "reuseport.h"\nREUSEPORT_POLICY(mine)\n{\n\treturn 0;\n}\n')
    own.chmod(0o600)
    cache = tmp_path / "programs"
    report = tool.ok("compile", "--output", cache, "--program", own)
    assert {entry["result"] for entry in report["programs"]} <= {"compiled", "unsupported"}
    assert cache.stat().st_mode & 0o777 == 0o700
    server("one")
    reload = ("reload", PORT, "--output", tmp_path / "log", "--stop-timeout", 5, "--", *server_command("two"))
    for verb in (
        ("attach", PORT),
        ("attach", PORT, "--program", own),
        ("attach", PORT, "--policy", "cpu"),
        ("status", PORT),
        ("sockets", "--endpoint", PORT),
        reload,
        ("detach", PORT),
    ):
        done = run(tool, cache, *verb)
        assert done.returncode == 0, f"{verb}: {done.stderr}"
    assert ask() == "two"


def test_an_empty_folder_is_not_enough(tool: Tool, server: Start, tmp_path: Path) -> None:
    server("one")
    done = run(tool, tmp_path / "programs", "attach", PORT)
    assert (done.returncode, "BCC's Python module" in done.stderr) == (4, True)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_refused(tool: Tool, tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "programs"
    cache.mkdir()
    cache.chmod(mode)
    assert "nobody else can write" in tool.fails(1, "compile", "--output", cache)["hint"]
    assert list(cache.iterdir()) == []
