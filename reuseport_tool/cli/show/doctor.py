"""What the running kernel can do."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import make_table, mark, row, say
from reuseport_tool.cli.show.layout import put
from reuseport_tool.cli.show.tables import table


@table.register
def _doctor(model: models.Doctor, console: Console) -> None:
    made = make_table("", "feature", "since", "detail")
    for feature in model.features:
        row(made, mark(feature.available), feature.name, feature.minimum_kernel or "-", feature.detail)
    put(console, made)
    console.print()
    made = make_table("", "capability", "used for")
    for capability in model.capabilities:
        row(made, mark(capability.held), capability.name, capability.used_for)
    put(console, made)
    console.print()
    say(console, _doctor_verdict(model))


def _doctor_verdict(model: models.Doctor) -> Text:
    subject = f"Linux {model.kernel}: reload with the strategy migrate"
    if model.ok:
        return Text(f"{subject} works here", style="bold green")
    absent = [feature.name for feature in model.features if feature.available is False]
    wanting = [name for name in model.missing if name in absent]
    if wanting:
        return Text(f"{subject} does not work here, for want of: {', '.join(wanting)}", style="bold red")
    return Text(f"{subject} could not be tried: {', '.join(model.missing)}", style="bold yellow")
