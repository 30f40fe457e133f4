"""AutoLOWAT: what is attached and what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted, say
from reuseport_tool.cli.show.tables import table


@table.register
def _autolowat_attachment(model: models.AutolowatAttachment, console: Console) -> None:
    done = {"unchanged": "already attached", "extended": "now also at the new devices"}.get(model.result, model.result)
    say(console, f"{model.cgroup}  {done}: engine {model.engine}, framing {model.framing}, {_ports(model.ports)}")
    if model.devices:
        say(console, f"  devices {', '.join(model.devices)}")


def _ports(ports: Sequence[int]) -> str:
    return f"ports {', '.join(map(str, ports))}" if ports else "sockets that opt in"


@table.register
def _autolowat_detached(model: models.AutolowatDetached, console: Console) -> None:
    say(console, f"{model.cgroup}  detached; {counted(model.sockets, 'socket')} at SO_RCVLOWAT 1")


@table.register
def _autolowat_status(model: models.AutolowatStatus, console: Console) -> None:
    if not model.attachments:
        console.print("AutoLOWAT is attached to no cgroup.")
    for entry in model.attachments:
        say(
            console,
            Text(entry.cgroup, style="bold")
            + Text(f"  engine {entry.engine}, framing {entry.framing}, {_ports(entry.ports)}"),
        )
        if not entry.working:
            say(console, Text("  not working: an attach or detach was cut off; run it again", style="yellow"))
        if entry.engine == models.Engine.SOLO:
            say(console, f"  devices {', '.join(entry.devices) or 'none'}; marked segments {entry.marks}")
        say(console, f"  sockets {entry.sockets}, following {entry.following}; followed so far {entry.opted_in}")
        say(console, f"  frames {entry.frames}, wake-ups saved {entry.wakeups_saved}; fail-opens: {_fails(entry)}")


def _fails(entry: models.Autolowat) -> str:
    reasons = dataclasses.asdict(entry.fail_opens)
    return ", ".join(f"{name} {number}" for name, number in reasons.items() if number) or "none"
