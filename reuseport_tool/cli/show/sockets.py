"""Sockets, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from rich.console import Console
from rich.text import Text

from reuseport_tool import models
from reuseport_tool.cli.show.console import counted, say
from reuseport_tool.cli.show.tables import table
from reuseport_tool.names import shown

_SOCKET_COLUMNS = ("proto", "state", "local", "remote", "cookie", "pid", "command", "idle", "queues", "gen")


def _socket_cells(entries: Sequence[models.Socket]) -> list[list[str]]:
    """The columns of text. By column, because 100,000 lines take twice as long one by one."""
    of = models.SocketTable.of(entries).columns
    waited_s = [idle_s if age_s is None else age_s for age_s, idle_s in zip(of["age_s"], of["idle_s"], strict=True)]
    queues = zip(of["receive_queue"], of["send_queue"], of["accept_queue"], of["backlog"], strict=True)
    return [
        list(of["protocol"]),
        list(of["state"]),
        # Only the name of a device is another's text.
        [shown(local) if "%" in local else local for local in of["local"]],
        [remote or "-" for remote in of["remote"]],
        list(map(str, of["cookie"])),
        ["-" if pid is None else str(pid) for pid in of["pid"]],
        list(map(_command, of["command"])),
        list(map(_seconds, waited_s)),
        [_queues(*each) for each in queues],
        ["-" if generation is None else str(generation) for generation in of["generation"]],
    ]


@lru_cache(maxsize=1 << 12)
def _command(command: str | None) -> str:
    return shown(command or "-")


@lru_cache(maxsize=1 << 12)
def _seconds(waited_s: float | None) -> str:
    return "-" if waited_s is None else f"{waited_s:.1f}s"


@lru_cache(maxsize=1 << 12)
def _queues(receive: int | None, send: int | None, accept: int | None, backlog: int | None) -> str:
    if backlog is not None:
        return f"{accept}/{backlog}"
    return "-" if receive is None else f"{receive}/{send}"


def _socket_lines(entries: Sequence[models.Socket], width: int, prefixes: Sequence[str] = ()) -> Iterable[str]:
    """A line for each socket where all fit into `width`, else two. Plain text: rich takes minutes for 100,000.

    Args:
        prefixes: a column in front, as long as `entries`.
    """
    cells = _socket_cells(entries)
    titled = [[name, *column] for name, column in zip(_SOCKET_COLUMNS, cells, strict=True)]
    if prefixes:
        titled.insert(0, ["", *prefixes])
    widths = [max(map(len, column)) for column in titled]
    if sum(widths) + 2 * len(widths) <= width:
        line = "  ".join([*(f"%-{size}s" for size in widths[:-1]), "%s"])
        return map(line.__mod__, zip(*titled, strict=True))
    return _pairs_of_lines(cells, prefixes)


def _pairs_of_lines(columns: Sequence[Sequence[str]], prefixes: Sequence[str]) -> Iterator[str]:
    for index, (proto, state, local, remote, *rest) in enumerate(zip(*columns, strict=True)):
        front = f"{prefixes[index]}  " if prefixes else ""
        yield f"{front}{proto} {state} {local} → {remote}"
        named = zip(_SOCKET_COLUMNS[4:], rest, strict=True)
        yield "    " + "  ".join(f"{name} {cell}" for name, cell in named if cell != "-")


def _write_lines(lines: Iterable[str], console: Console) -> None:
    text = "\n".join(lines)
    if text:
        console.file.write(text + "\n")


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
