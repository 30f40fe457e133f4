"""The live proof of UDP reloads on this kernel: kinds of servers × ways to reload × IPv4 and IPv6.

Each case is a story of its own, in a network namespace of its own:

1. An old server serves, and clients send to it at a steady rate.
2. It is replaced: plainly (the new one starts, then the old one gets SIGTERM), or by this tool, as an operator runs it.
3. Every datagram that a client sent must have been answered, or the case must end as its line says.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from reuseport_tool.check import lab
from reuseport_tool.check.udp_server import HELLO
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import netns, sockets
from reuseport_tool.models import CheckUdpReload, UdpCase

PORT = 5000
_WORKERS = 4  # cases at a time: they wait most of their time
_PORTS = 10
_GAP_S = 0.002
_READY_S = 30.0
_ANSWER_S = 10.0
_AFTER_S = 0.5  # how long flows go on after the switch
_TOOL_S = 90.0
_ADDRESSES = {"ipv4": "127.0.0.1", "ipv6": "::1"}
_WILDCARDS = {"ipv4": "0.0.0.0", "ipv6": "::"}


@dataclass(frozen=True, kw_only=True)
class Story:
    """One row: a kind of server, how it is reloaded, and what must come of it.

    Attributes:
        server: options of udp_server.py, for both servers; `new` for the new one alone.
        options: of `reload`; None reloads plainly.
        expected: `survive`, `lose`, or what the tool must say by its exit code: `reported` (1), `refused` (2, 7),
            `rolled back` (8). In the two last nothing may be lost.
        entries: of the map of flows, where the group is attached before.
        session: the clients say hello to one server, and only that one knows them.
        ends: the clients stop soon after the switch, so that their flows end.
    """

    name: str
    way: str
    expected: str
    options: tuple[str, ...] | None = None
    server: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    session: bool = False
    entries: int | None = None
    foreign: bool = False
    wildcard: bool = False
    flood: bool = False
    ends: bool = False


_NONE = ("--flows", "none")
_ADDRESS = ("--flows", "address", "--flow-timeout", "1s")
_LATE = ("--delay", "0.4")
_SESSION = ("--session",)
STORIES = (
    Story(name="fast answers", way="none", expected="survive", options=_NONE),
    Story(name="answers after 400 ms", way="plain", expected="lose", server=_LATE),
    Story(name="answers after 400 ms", way="none", expected="survive", options=_NONE, server=_LATE),
    Story(name="flows with state", way="plain", expected="lose", server=_SESSION, session=True),
    Story(name="flows with state", way="none", expected="lose", options=_NONE, server=_SESSION, session=True),
    Story(
        name="flows with state",
        way="address",
        expected="survive",
        options=_ADDRESS,
        server=_SESSION,
        session=True,
        entries=4096,
        ends=True,
    ),
    Story(
        name="map too small",
        way="address",
        expected="reported",
        options=("--flows", "address", "--drain-timeout", "3s"),
        entries=1024,
        flood=True,
    ),
    Story(name="new server is deaf", way="none", expected="rolled back", options=_NONE, new=("--deaf",)),
    Story(name="foreign program", way="none", expected="refused", options=_NONE, foreign=True),
    Story(name="unsaid what is kept", way="-", expected="refused", options=()),
    Story(name="a connected socket", way="none", expected="survive", options=_NONE, wildcard=True),
)
_CODES = {"survive": (0,), "lose": (0,), "reported": (1,), "refused": (2, 7), "rolled back": (8,)}


def check(root: Path | None, progress: Callable[[int, int], None] = lambda done, total: None) -> CheckUdpReload:
    """Run all cases.

    Raises:
        Unsupported, MissingCapability: namespaces, or programs of this type, are not to be had.
    """
    start = time.perf_counter()
    cells = [(story, family) for story in STORIES for family in _ADDRESSES]
    cases: dict[tuple[Story, str], UdpCase] = {}
    with lab.private_pins(root) as pins, ThreadPoolExecutor(_WORKERS) as pool:
        running = {pool.submit(_run, story, family, str(pins)): (story, family) for story, family in cells}
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


def _run(story: Story, family: str, pins: str) -> UdpCase:
    begun = time.perf_counter()
    trial = Trial(story, family, pins)
    try:
        with netns.throw_away():
            trial.play()
        problem = trial.verdict()
    except (Unsupported, MissingCapability):
        raise
    except ToolError as error:
        problem = f"could not run: {error.message}"
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


class Trial:
    """One case. `code` is the tool's exit code, `report` what it printed."""

    def __init__(self, story: Story, family: str, pins: str) -> None:
        self._story = story
        self._address = _ADDRESSES[family]
        self._bound = _WILDCARDS[family] if story.wildcard else self._address
        shown = f"[{self._bound}]" if ":" in self._bound else self._bound
        self._endpoint = f"udp://{shown}:{PORT}"
        self._tool = [sys.executable, "-m", "reuseport_tool", "--json", "--bpffs", pins]
        self._stack = ExitStack()
        self.sent = self.lost = 0
        self.code = 0
        self.evicted = 0

    def play(self) -> None:
        """From the first server to the last answer, in the calling thread's namespace."""
        with self._stack:
            connect = ("--connect", self._address) if self._story.wildcard else ()
            old = self._start("old", *self._story.server, *connect)
            if self._story.foreign:
                self._attach_foreign()
            if self._story.entries is not None:
                self._run("attach", self._endpoint, "--flows", "address", "--flow-entries", str(self._story.entries))
            load = Load(self._address, hello=self._story.session)
            with load, self._flooded():
                self._replace(old, load)
                load.send_for(0.3)
            self.sent, self.lost = load.sent, load.lost

    def verdict(self) -> str:
        """What is not as expected; empty where all is."""
        expected = self._story.expected
        if self.code not in _CODES[expected]:
            return f"the tool exits with {self.code}, and not with {' or '.join(map(str, _CODES[expected]))}"
        if expected == "reported":
            return "" if self.evicted else "no evicted flow is reported"
        if expected == "lose":
            return "" if self.lost else "nothing was lost, so the case proves nothing"
        return f"{self.lost} of {self.sent} datagrams were not answered" if self.lost else ""

    def _replace(self, old: subprocess.Popen[str], load: Load) -> None:
        if self._story.options is None:
            self._start("new", *self._story.server, *self._story.new)
            old.terminate()
            old.wait()
            return
        options = ("--settle", "0.6s", "--health-timeout", "2s", *self._story.options, "--output", "/dev/null")
        if self._story.ends:
            switched = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "switched"
            options = (*options, "--on-switch", f"touch {switched}")
            load.end_after(switched)
        new = self._command("new", *self._story.server, *self._story.new)
        done = self._run("reload", self._endpoint, *options, "--", *new)
        self._stack.callback(self._end_new, done.stdout)
        self.code = done.returncode
        with contextlib.suppress(ValueError, LookupError):
            self.evicted = json.loads(done.stdout)["datagrams"][0]["evicted"]

    def _end_new(self, printed: str) -> None:
        with contextlib.suppress(ValueError, LookupError, ProcessLookupError):
            for pid in json.loads(printed)["new"]["pids"]:
                os.kill(pid, 9)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._tool, *arguments], capture_output=True, text=True, timeout=_TOOL_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"{arguments[0]} takes longer than {_TOOL_S:g} s") from error

    def _command(self, name: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "reuseport_tool.check.udp_server", self._bound, str(PORT), name, *options]

    def _start(self, name: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command(name, *options), stdout=subprocess.PIPE, text=True)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], _READY_S)[0] or process.stdout.readline() != "ready\n":
            raise ToolError(f"the server {name} does not start")
        return process

    def _attach_foreign(self) -> None:
        with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            member.bind((self._bound, PORT))
            sockets.attach_filter(member.fileno(), 0)

    @contextlib.contextmanager
    def _flooded(self) -> Iterator[None]:
        """Inside, many one-datagram flows pass, where the story is about them; and 600 old flows are known."""
        if not self._story.flood:
            yield
            return
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        stop = threading.Event()
        with ExitStack() as stack:
            for _ in range(600):
                client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                client.sendto(b"old", (self._address, PORT))

            def flood() -> None:
                while not stop.is_set():
                    with socket.socket(family, socket.SOCK_DGRAM) as passing:
                        passing.sendto(b"new", (self._address, PORT))
                    stop.wait(0.0005)

            # A thread of its own is in the same namespace, because the one that starts it is.
            thread = threading.Thread(target=flood)
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.set)
            yield


class Load:
    """Clients that send in turn at a steady rate, and count what is answered. A context manager."""

    def __init__(self, address: str, *, hello: bool) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._clients = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(_PORTS)]
        for client in self._clients:
            client.connect((address, PORT))
            client.setblocking(False)
        self._hello = hello
        self._stop = threading.Event()
        self._switched: Path | None = None
        self._thread = threading.Thread(target=self._send_all)
        self._answered: collections.Counter[int] = collections.Counter()
        self.sent = 0

    def __enter__(self) -> Load:
        if self._hello:
            self._round(HELLO)
        self._thread.start()
        deadline = time.monotonic() + _ANSWER_S
        while not self._answered and time.monotonic() < deadline:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for client in self._clients:
            client.close()

    @property
    def lost(self) -> int:
        """Datagrams without an answer."""
        return self.sent - self._answered.total()

    def end_after(self, switched: Path) -> None:
        """Send on for a moment when this file is there, and then no more."""
        self._switched = switched

    def send_for(self, seconds: float) -> None:
        """Go on for so long."""
        self._stop.wait(seconds)

    def _round(self, payload: bytes) -> None:
        for client in self._clients:
            self._send(client, payload)

    def _send(self, client: socket.socket, payload: bytes) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            client.send(payload)
        self.sent += 1

    def _send_all(self) -> None:
        due_s = time.monotonic()
        last: float | None = None
        while not self._stop.is_set() and (last is None or time.monotonic() < last):
            self._send(self._clients[self.sent % _PORTS], b"datagram")
            due_s = max(due_s + _GAP_S, time.monotonic() - 10 * _GAP_S)  # a stall is not made up for by a burst
            while (left_s := due_s - time.monotonic()) > 0:
                self._read(self._clients, left_s)
            if last is None and self._switched is not None and self._switched.exists():
                last = time.monotonic() + _AFTER_S
        deadline = time.monotonic() + _ANSWER_S
        quiet_since = time.monotonic()
        while self.lost and time.monotonic() < min(deadline, quiet_since + 1.5):
            if self._read(self._clients, 0.05):
                quiet_since = time.monotonic()

    def _read(self, clients: Sequence[socket.socket], wait_s: float) -> int:
        readable = select.select(clients, [], [], wait_s)[0]
        for client in readable:
            with contextlib.suppress(OSError):
                client.recv(64)
                self._answered[0] += 1
        return len(readable)
