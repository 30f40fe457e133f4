"""What a shell is told while an operator types."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest

from reuseport_tool.cli import main
from reuseport_tool.models import Policy

NAME = "reuseport-tool"


def completed(words: str, shell: str = "bash") -> list[str]:
    """The answer to a completion of the last word."""
    answer = subprocess.run(
        [sys.executable, "-m", "reuseport_tool"],
        env={
            **os.environ,
            "_REUSEPORT_TOOL_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": f"{NAME} {words}",
            "COMP_CWORD": str(len(words.split(" "))),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line.partition(",")[2] for line in answer.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    command = [sys.executable, "-m", "reuseport_tool", "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert NAME in script
    assert f"_REUSEPORT_TOOL_COMPLETE={shell}_complete" in script


def test_verbs_and_policies() -> None:
    assert {"reload", "status", "metrics"} <= set(completed(""))
    assert completed("attach 8080 --policy ") == [policy.value for policy in Policy]
    assert completed("check h") == ["hot-reload"]


@pytest.mark.parametrize("verb", ["map", "autolowat", "check", "bench"])
def test_no_summary_is_cut_short(verb: str) -> None:
    """Shells show them beside the words."""
    group = main.cli.get_command(click.Context(main.cli), verb)
    assert isinstance(group, click.Group)
    summaries = [command.get_short_help_str() for command in group.commands.values()]
    assert summaries
    assert not [text for text in summaries if text.endswith("...")]


def test_a_completion_that_fails_says_nothing() -> None:
    assert completed("--netns /nowhere/at/all status ") == []
