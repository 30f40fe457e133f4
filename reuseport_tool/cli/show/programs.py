"""Programs that were compiled into a cache."""

from __future__ import annotations

from rich.console import Console

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted, make_table, row, say
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table


@table.register
def _filled(model: models.Filled, console: Console) -> None:
    made = make_table("program", "result", "detail")
    for entry in model.programs:
        row(made, entry.name, entry.result, entry.detail)
    put(console, made)
    done = sum(entry.result == "compiled" for entry in model.programs)
    say(console, f"{counted(done, 'program')} for {model.kernel}. Use them: REUSEPORT_TOOL_CACHE={model.folder}")
