"""`reload NAME` reads /etc/reuseport-tool/NAME.toml: the endpoint, how the new server comes to be, and any option.

    endpoint = "8080"                     # or a list
    command = ["/srv/web/server", "8080"] # or run, unit, new-pid, as on the command line
    health-url = "http://127.0.0.1:8080/health"
    canary = [5, 25, 100]
    step = "30s"

What stands on the command line, and in the environment, comes before what is in the file.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from reuseport_tool.errors import Conflict, UsageError
from reuseport_tool.kernel.folders import is_private
from reuseport_tool.record import record

FOLDER = Path("/etc/reuseport-tool")
# A name begins with a letter, which no endpoint does but one with a protocol or a bracket.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_@.-]*")
_OWN = ("endpoint", "command")


@record
class DeployFile:
    """What a file says: `options` by the names of click's parameters."""

    endpoints: tuple[str, ...]
    command: tuple[str, ...]
    options: Mapping[str, Any]


def find(argument: str, folder: Path | None = None) -> Path | None:
    """The file that an argument names; None for an endpoint.

    Raises:
        UsageError: it has the form of a name, and there is no such file.
    """
    if not _NAME.fullmatch(argument):
        return None
    file = (folder or FOLDER) / f"{argument}.toml"
    if not file.is_file():
        raise UsageError(
            f"neither an endpoint nor a deploy file: {argument!r}",
            hint=f"write PORT or ADDR:PORT, or describe the deploy in {file}",
        )
    return file


def read(file: Path, command: click.Command) -> DeployFile:
    """Raises UsageError for a file that is not TOML, or says what no option is for.

    Raises:
        Conflict: somebody else could have written it or put another file there: its commands run with our rights.
    """
    try:
        content = tomllib.loads(_text(file))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{file}: {error}", hint="README.md has an example of a deploy file") from error
    options = _options(command)
    unknown = sorted(name for name in content if name not in _OWN and name not in options)
    if unknown:
        raise UsageError(
            f"{file}: no such option: {', '.join(unknown)}", hint="the names are those of 'reload --help', without --"
        )
    return DeployFile(
        endpoints=_endpoints(file, content.get("endpoint")),
        command=_words(file, content.get("command", [])),
        options={
            options[name].name or name: _value(file, options[name], value)
            for name, value in content.items()
            if name not in _OWN
        },
    )


def _text(file: Path) -> str:
    folder = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_open_to_others(file.parent, os.fstat(folder), stat.S_IFDIR)
        fd = os.open(file.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(fd, encoding="utf-8") as opened:
        _refuse_open_to_others(file, os.fstat(fd), stat.S_IFREG)
        return opened.read()


def _refuse_open_to_others(path: Path, status: os.stat_result, kind: int) -> None:
    if is_private(status, kind):
        return
    raise Conflict(
        f"{path} belongs to uid {status.st_uid} and has the mode {stat.S_IMODE(status.st_mode):04o}: "
        "others could have written its commands",
        hint=f"look at it, then: chown {os.geteuid()} {path}; chmod go-w {path}",
    )


def _options(command: click.Command) -> dict[str, click.Option]:
    """By their long names without dashes."""
    return {
        name.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }


def _words(file: Path, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise UsageError(f"{file}: the command is a list of words", hint='command = ["/srv/web/server", "8080"]')
    return tuple(value)


def _endpoints(file: Path, value: object) -> tuple[str, ...]:
    endpoints = value if isinstance(value, list) else [value]
    if not endpoints or not all(isinstance(endpoint, str | int) for endpoint in endpoints):
        raise UsageError(f"{file}: endpoint is missing, or no text", hint='endpoint = "8080"')
    return tuple(map(str, endpoints))


def _value(file: Path, option: click.Option, value: object) -> object:
    """As the command line would have it: text, except for flags and options that may be repeated."""
    if isinstance(value, dict) or (isinstance(value, bool) and not option.is_flag):
        name = option.opts[-1].removeprefix("--")
        raise UsageError(f"{file}: {name} is text or a number, and not {value}", hint=f'{name} = "…"')
    if isinstance(value, list):
        words = [f"{word:g}" if isinstance(word, float) else str(word) for word in value]
        return words if option.multiple else ",".join(words)
    if option.is_flag or option.multiple:
        return [str(value)] if option.multiple else value
    return str(value)
