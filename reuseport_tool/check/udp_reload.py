"""The live proof of UDP reloads on this kernel: kinds of servers × ways to reload × IPv4 and IPv6.

Each case is a story of its own, in a network namespace of its own:

1. An old server serves, and clients send to it at a steady rate.
2. It is replaced: plainly (the new one starts, then the old one gets SIGTERM), or by this tool, as an operator runs it.
3. Every datagram that a client sent must have been answered, or the case must end as its line says.

What a call of the tool takes at the start says how fast the clients send, and how long anything may take.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.check import commands, lab
from reuseport_tool.check.pace import Pace, measure
from reuseport_tool.check.quic_load import QuicLoad
from reuseport_tool.check.udp_load import CLIENTS, Flood, UdpLoad
from reuseport_tool.check.udp_stories import STORIES, Story
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import netns, sockets
from reuseport_tool.models import CheckUdpReload, HandedOver, UdpCase
from reuseport_tool.waiting import readable, wait_until

PORT = 5000
_WORKERS = 4  # cases at a time: they wait most of their time
_READY_S = 60.0
_ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}
_WILDCARDS = {"ipv4": "0.0.0.0", "ipv6": "::"}
_CODES = {"survive": (0,), "reported": (1,), "refused": (2, 7), "rolled back": (8,)}


def check(root: Path | None, progress: Callable[[int, int], None] = lambda done, total: None) -> CheckUdpReload:
    """Run all cases.

    Raises:
        Unsupported, MissingCapability: namespaces, or programs of this type, are not to be had.
    """
    start = time.perf_counter()
    cells = [(story, family) for story in STORIES for family in _ADDRESSES]
    cases: dict[tuple[Story, str], UdpCase] = {}
    with lab.private_pins(root) as pins, ThreadPoolExecutor(_WORKERS) as pool:
        with netns.throw_away():
            pace = measure([*_tool(str(pins)), "status"], _WORKERS)
        running = {pool.submit(_run, story, family, str(pins), pace): (story, family) for story, family in cells}
        try:
            for done in as_completed(running):
                cases[running[done]] = done.result()
                progress(len(cases), len(cells))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    found = tuple(cases[cell] for cell in cells)
    return CheckUdpReload(
        kernel=os.uname().release,
        ok=all(case.ok for case in found),
        cases=found,
        duration_s=round(time.perf_counter() - start, 3),
    )


def _tool(pins: str) -> list[str]:
    return [sys.executable, "-m", "reuseport_tool", "--json", "--bpffs", pins]


def _run(story: Story, family: str, pins: str, pace: Pace) -> UdpCase:
    begun = time.perf_counter()
    trial = UdpTrial(story, family, pins, pace)
    try:
        with netns.throw_away():
            trial.play()
        problem = trial.verdict()
    except (Unsupported, MissingCapability):
        raise
    except ToolError as error:
        problem = f"could not run: {error.message}"
    except OSError as error:
        problem = f"could not run: {error}"
    return UdpCase(
        name=story.name,
        family=family,
        flows=story.way,
        expected=story.expected,
        datagrams=trial.sent,
        lost=trial.lost,
        ok=not problem,
        duration_s=round(time.perf_counter() - begun, 3),
        detail=problem,
    )


class UdpTrial:
    """One case.

    Attributes:
        sent, lost: datagrams of the clients.
        code: the tool's exit code, 0 where it was not used.
        handed_over: what the tool's report says of the group; None where there is none.
    """

    def __init__(self, story: Story, family: str, pins: str, pace: Pace) -> None:
        self._story = story
        self._pace = pace
        self._address = _ADDRESSES[family]
        self._bound = _WILDCARDS[family] if story.wildcard else self._address
        shown = f"[{self._bound}]" if ":" in self._bound else self._bound
        self._endpoint = f"udp://{shown}:{PORT}"
        self._tool = _tool(pins)
        self._stack = ExitStack()
        self.sent = self.lost = 0
        self.code = 0
        self.handed_over: HandedOver | None = None

    def play(self) -> None:
        """From the first server to the last answer, in the calling thread's namespace."""
        with self._stack:
            connect = ("--connect", self._address) if self._story.wildcard else ()
            old = self._start("old", *self._story.server, *connect)
            if self._story.foreign:
                self._attach_foreign()
            if self._story.entries is not None:
                self._run(
                    "attach", self._endpoint, "--flows", self._story.way, "--flow-entries", str(self._story.entries)
                )
            with self._load() as load:
                load.go_on(CLIENTS * 10)
                with Flood(self._address, PORT, self._pace) if self._story.flood else contextlib.nullcontext():
                    self._replace(old, load)
                load.go_on(CLIENTS * 10)
            self.sent, self.lost = load.sent, load.lost

    def verdict(self) -> str:
        """What is not as expected; empty where all is."""
        expected, has_lost = self._story.expected, bool(self.handed_over and self.handed_over.has_lost)
        # A loss that the case provokes is seen by the tool only where the sockets dropped something.
        codes = _CODES.get(expected, (int(has_lost),))
        if self.code not in codes:
            return f"the tool exits with {self.code}, and not with {' or '.join(map(str, codes))}"
        if expected == "reported":
            return "" if self.handed_over and self.handed_over.evicted else "no evicted flow is reported"
        if expected == "lose":
            return "" if self.lost else "nothing was lost, so the case proves nothing"
        return f"{self.lost} of {self.sent} datagrams were not answered" if self.lost else ""

    def _load(self) -> UdpLoad | QuicLoad:
        if self._story.quic:
            return QuicLoad(self._address, PORT, renewed=self._story.renewed, pace=self._pace)
        return UdpLoad(self._address, PORT, self._pace)

    def _replace(self, old: subprocess.Popen[str], load: UdpLoad | QuicLoad) -> None:
        if self._story.options is None:
            self._start("new", *self._story.server, *self._story.new)
            old.terminate()
            if not wait_until(lambda: old.poll() is not None, self._pace.seconds(_READY_S)):
                raise ToolError("the old server does not stop", hint="try again on an idle machine")
            return
        options = (*map(self._pace.option, self._story.options), "--output", "/dev/null")
        if self._story.ends:
            switched = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "switched"
            options = (*options, "--on-switch", f"touch {switched}")
            load.end_after(switched)
        new = self._command("new", *self._story.server, *self._story.new)
        done = self._run("reload", self._endpoint, *options, "--", *new)
        self._stack.callback(self._end_new, done.stdout)
        self.code = done.returncode
        with contextlib.suppress(ValueError, LookupError):
            self.handed_over = HandedOver(**json.loads(done.stdout)["datagrams"][0])

    def _end_new(self, printed: str) -> None:
        with contextlib.suppress(ValueError, LookupError, ProcessLookupError):
            for pid in json.loads(printed)["new"]["pids"]:
                os.kill(pid, 9)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run([*self._tool, *arguments], longest_s=self._pace.seconds(commands.LONGEST_S))

    def _command(self, name: str, *options: str) -> list[str]:
        server = (
            ("quic_server", self._bound, str(PORT))
            if self._story.quic
            else ("udp_server", self._bound, str(PORT), name)
        )
        return [sys.executable, "-m", f"reuseport_tool.check.{server[0]}", *server[1:], *options]

    def _start(self, name: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command(name, *options), stdout=subprocess.PIPE, text=True)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        if not readable(process.stdout, self._pace.seconds(_READY_S)) or process.stdout.readline() != "ready\n":
            raise ToolError(f"the server {name} does not start")
        return process

    def _attach_foreign(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            member.bind((self._bound, PORT))
            sockets.attach_filter(member.fileno(), 0)
