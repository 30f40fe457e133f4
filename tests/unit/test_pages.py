"""The pages and the help fit the command line: it understands each of their examples, and README lists each verb."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from reuseport_tool.cli import deploy_file, main
from tests.unit.test_cli import GROUPS, VERBS
from tests.unit.test_links import CHECKOUT, pages

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WHERE = re.compile(r"^(?:\w+=\S+ |sudo -u \w+ |setpriv .* )?reuseport-tool (.*)")
REST = re.compile(r"  #.*| [|>] .*")
"""What the shell makes of the end of a line."""
README = (CHECKOUT / "README.md").read_text()


def command_lines(text: str) -> Iterator[str]:
    """The arguments of each line that runs the tool."""
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        found = WHERE.match(line.strip())
        if found and "  " not in (words := REST.sub("", found[1]).strip()):  # else it is a row of a table
            yield words


def of_help(verb: tuple[str, ...]) -> Iterator[str]:
    command: click.Command | None = main.cli
    for name in verb:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return command_lines((command.help or "").partition("Examples:")[2])


EXAMPLES = sorted(
    {
        line
        for page in pages()
        for _, block in BLOCK.findall((CHECKOUT / page).read_text())
        for line in command_lines(block)
    }
    | {line for verb in [*VERBS, *GROUPS, ()] for line in of_help(verb)}
)


@pytest.fixture
def parsed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No verb does anything, and there is a deploy file: that of README.md."""
    monkeypatch.setattr(click.Command, "invoke", lambda _command, _context: 0)
    monkeypatch.setattr(deploy_file, "FOLDER", tmp_path)
    tmp_path.chmod(0o700)
    for language, block in BLOCK.findall(README):
        if language == "toml":
            (tmp_path / "web.toml").write_text(block)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_understood(line: str, parsed_only: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(shlex.split(line)) == 0, capsys.readouterr().err


def test_what_is_no_option_is_not_understood(parsed_only: None) -> None:
    assert main.run(["reload", "8080", "--no-such-option"]) == 2


def test_deploy_files_are_understood(tmp_path: Path, parsed_only: None) -> None:
    found = [
        block
        for page in pages()
        for language, block in BLOCK.findall((CHECKOUT / page).read_text())
        if language == "toml" and "endpoint" in tomllib.loads(block)
    ]
    assert len(found) >= 2
    for block in found:
        (tmp_path / "web.toml").write_text(block)
        assert main.run(["reload", "web"]) == 0


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_readme_lists_every_verb(verb: tuple[str, ...]) -> None:
    """As `map list|show`, or as a whole."""
    commands = re.findall(r"^\| `([^`]*)` \|", README.replace("\\|", "|"), re.MULTILINE)
    words = [re.split(r"[ |]", command.replace("[", "").replace("]", "")) for command in commands]
    assert any(found[0] == verb[0] and verb[-1] in found for found in words)
