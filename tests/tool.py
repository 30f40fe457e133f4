"""Run the command line as an operator does: as a process, reading its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

TIMEOUT_S = 90
CONTRACT = json.loads((Path(__file__).parents[1] / "docs" / "schema.json").read_text())
_VALID = jsonschema.Draft202012Validator(CONTRACT)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which fits docs/schema.json."""
        printed = json.loads(self.out)
        assert _VALID.is_valid(printed), f"not in docs/schema.json: {self.out[:2000]}"
        return printed

    @property
    def error(self) -> Any:
        """The error object, which comes last on stderr."""
        return json.loads(self.err[self.err.rindex("\n{\n") if "\n{\n" in self.err else self.err.index("{") :])


class Tool:
    def __init__(self, bpffs: Path | None) -> None:
        self.bpffs = bpffs

    def command(self, *arguments: object, as_json: bool = True) -> list[str]:
        options = ["--json"] if as_json else []
        options += ["--bpffs", str(self.bpffs)] if self.bpffs else []
        return [sys.executable, "-m", "reuseport_tool", *options, *map(str, arguments)]

    def run(self, *arguments: object, as_json: bool = True, timeout_s: float = TIMEOUT_S) -> Done:
        """Run to the end, whatever the exit code.

        Files and not pipes: a server that the tool starts keeps the tool's stderr open.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(
                self.command(*arguments, as_json=as_json), stdout=out, stderr=err, timeout=timeout_s, check=False
            )
            for file in (out, err):
                file.seek(0)
            return Done(done.returncode, out.read(), err.read())

    def ok(self, *arguments: object) -> Any:
        """The JSON of a command that must succeed."""
        done = self.run(*arguments)
        assert done.code == 0, f"{arguments} exited with {done.code}: {done.err}"
        return done.json

    def fails(self, code: int, *arguments: object) -> Any:
        """The error object of a command that must fail with a code, a message and no traceback."""
        done = self.run(*arguments)
        assert done.code == code, f"{arguments} exited with {done.code}, not {code}: {done.out}{done.err}"
        assert "Traceback" not in done.err
        assert done.error["code"] == code
        assert done.error["message"]
        return done.error
