"""Sockets, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted, say
from reuseport_tool.cli.show.tables import table
from reuseport_tool.names import shown

_SOCKET_COLUMNS = ("proto", "state", "local", "remote", "cookie", "pid", "command", "idle", "queues", "gen")


def _socket_cells(entry: models.Socket) -> tuple[str, ...]:
    waited_s = entry.idle_s if entry.age_s is None else entry.age_s
    receive, send = (
        (entry.accept_queue, entry.backlog) if entry.backlog is not None else (entry.receive_queue, entry.send_queue)
    )
    return (
        entry.protocol,
        entry.state,
        shown(entry.local) if "%" in entry.local else entry.local,  # only the name of a device is another's text
        entry.remote or "-",
        str(entry.cookie),
        "-" if entry.pid is None else str(entry.pid),
        shown(entry.command or "-"),
        "-" if waited_s is None else f"{waited_s:.1f}s",
        "-" if receive is None else f"{receive}/{send}",
        "-" if entry.generation is None else str(entry.generation),
    )


def _socket_lines(entries: Sequence[models.Socket], width: int, prefixes: Sequence[str] = ()) -> Iterator[str]:
    """A line for each socket where all fit into `width`, else two. Plain text: rich takes minutes for 100,000.

    Args:
        prefixes: a column in front, as long as `entries`.
    """
    front = [
        ("", *_SOCKET_COLUMNS),
        *((*prefix, *_socket_cells(entry)) for prefix, entry in _zipped(prefixes, entries)),
    ]
    widths = [max(map(len, column)) for column in zip(*front, strict=True)]
    skipped = 0 if widths[0] else 1
    if sum(widths) + 2 * len(widths) <= width:
        line = "  ".join(f"{{:<{size}}}" for size in widths)
        for cells in front:
            yield line.format(*cells)[2 * skipped :].rstrip()
        return
    for first, proto, state, local, remote, *rest in front[1:]:
        yield f"{first}  {proto} {state} {local} → {remote}"[2 * skipped :]
        named = zip(_SOCKET_COLUMNS[4:], rest, strict=True)
        yield "    " + "  ".join(f"{name} {cell}" for name, cell in named if cell != "-")


def _zipped(prefixes: Sequence[str], entries: Sequence[models.Socket]) -> Iterator[tuple[tuple[str], models.Socket]]:
    for index, entry in enumerate(entries):
        yield (prefixes[index] if prefixes else "",), entry


def _write_lines(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.file.write(line + "\n")


def _promise(exactly_once: bool | None, protocols: str) -> str:
    return {
        True: f"{protocols}: the kernel promises to show each socket exactly once",
        False: f"{protocols}: the kernel does not promise to show each socket exactly once",
        None: f"{protocols}: whether the kernel shows each socket exactly once is not known",
    }[exactly_once]


@table.register
def _sockets(model: models.Sockets, console: Console) -> None:
    _write_lines(_socket_lines(model.sockets, console.width), console)
    protocols = " and ".join(protocol.upper() for protocol in model.protocols)
    merged = f", merged from {model.walks} walks" if model.walks > 1 else ""
    text = f"{len(model.sockets)} of {model.walked} sockets{merged}. {_promise(model.exactly_once, protocols)}."
    say(console, Text(text, style="dim"))


@table.register
def _destroy(model: models.Destroy, console: Console) -> None:
    entries = [ending.socket for ending in model.endings]
    _write_lines(_socket_lines(entries, console.width, [ending.result for ending in model.endings]), console)
    for detail in dict.fromkeys(ending.detail for ending in model.endings if ending.detail):
        say(console, Text(f"refused: {detail}", style="yellow"))
    say(console, Text(_destroyed(model), style="bold"))
    if model.exactly_once is not True:
        say(console, Text(_promise(model.exactly_once, "The walk") + "; look again with 'sockets'.", style="yellow"))


def _destroyed(model: models.Destroy) -> str:
    results = [ending.result for ending in model.endings]
    done = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results)) or "no socket to end"
    if model.dry_run and results:
        done = f"would end {counted(len(results), 'socket')} by {model.engine}; add --yes to do it"
    kinds = {"listeners": model.listeners, "half-open": model.request_sockets, "time_wait": model.time_wait}
    left = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    return done + (f"; left alone: {left}" if left else "")
