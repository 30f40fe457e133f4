"""A steady load of new connections, a process of its own, and the ledger that each of them ends in.

`python -m reuseport_tool.bench.load ADDRESS PORT` is a closed loop of clients: each connects, asks, waits
for the whole answer, closes with a reset so that no TIME_WAIT is left, and begins anew. It prints `warm` when the
clients are out of step. On standard input `mark` sets the longest wait back to 0; at its end no connection is begun any
more, the open ones are seen to their end, and the ledger is printed as JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError
from reuseport_tool.waiting import readable

REQUEST = b"GET / HTTP/1.0\r\nHost: load\r\nAccept-Encoding: gzip\r\n\r\n"
_TAIL_BYTES = 64
STUCK_MAX = 3
TIMEOUT_S = 45.0
# Beyond the time-out of the last connection, until the process has told its ledger. At a load of 20 it took over ten
# seconds to start, to run ss three times and to end.
_END_S = 60.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(kw_only=True)
class Ledger:
    """Every connection is counted once.

    A connection is answered when the whole answer is there, and unanswered when it was closed, without a
    reset, before.

    Attributes:
        longest_wait_s: from connect(2) to the first byte of an answer.
        duration_s: of the whole load.
        stuck: both ends, by ss(8), of some that timed out.
        waits: where it was asked for, of each connection that got an answer: when it was begun, in seconds since 1970,
            and how long it waited for the first byte.
    """

    answered: int = 0
    refused: int = 0
    reset: int = 0
    unanswered: int = 0
    timed_out: int = 0
    longest_wait_s: float = 0.0
    duration_s: float = 0.0
    stuck: list[str] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list, repr=False)

    @property
    def lost(self) -> int:
        return self.refused + self.reset + self.unanswered + self.timed_out

    @property
    def connections(self) -> int:
        return self.answered + self.lost

    def plus(self, other: Ledger) -> Ledger:
        """Both together."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__}
        return Ledger(**{**sums, "longest_wait_s": max(self.longest_wait_s, other.longest_wait_s)})


class Load(Closing):
    """The load as a child process. A context manager; stop() gives the ledger.

    Args:
        clients: connections at a time.
        request: what a client says.
        answer_end: how a whole answer ends; "" for one that ends with its connection, as in HTTP/1.0.
        slow: so many of them send their request only `delay_s` after they have connected.
        timeout_s: a connection without a whole answer for so long is timed out.
        record: keep each connection's wait.
    """

    def __init__(
        self,
        address: str,
        port: int,
        clients: int = 64,
        *,
        request: bytes = REQUEST,
        answer_end: str = "",
        slow: int = 0,
        delay_s: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        record: bool = False,
    ) -> None:
        self._timeout_s = timeout_s
        words: list[object] = [address, port, "--clients", clients, "--request", request.hex()]
        words += ["--record"] if record else []
        words += ["--answer-end", answer_end, "--slow", slow, "--delay", delay_s, "--timeout", timeout_s]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def await_warm(self) -> None:
        """Wait until the clients are out of step: twice as many answers as there are clients. Raises ToolError."""
        assert self._process.stdout is not None
        if not readable(self._process.stdout, 2 * self._timeout_s) or not self._process.stdout.readline():
            raise ToolError("the load gets no answers")

    def mark(self) -> None:
        """Measure the longest wait anew, of the connections that are under way now and of all later ones."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # stop() will tell
            self._process.stdin.write("mark\n")
            self._process.stdin.flush()

    def stop(self) -> Ledger:
        """No new connections; the open ones are seen to their end. Raises ToolError when the load broke down."""
        try:
            out, _ = self._process.communicate(timeout=self._timeout_s + _END_S)
        except subprocess.TimeoutExpired as error:
            raise ToolError("the load does not end", hint="try again on an idle machine") from error
        if self._process.returncode:
            raise ToolError(f"the load ended with {self._process.returncode}", hint="its own message is above")
        return Ledger(**json.loads(out.splitlines()[-1]))


@dataclass(kw_only=True)
class _Connection:
    socket: socket.socket
    begun: float
    slow: bool
    asked: bool = False
    answer: bytes = b""  # its last bytes


class _Loop:
    """The closed loop; run() returns when it was told to stop and nothing is open any more."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._address = (options.address, options.port)
        self._delay_s: float = options.delay
        self._timeout_s: float = options.timeout
        self._request: bytes = options.request
        self._answer_end: bytes = options.answer_end.encode()
        self._record: bool = options.record
        self._begun_at = time.monotonic()
        self._open: dict[int, _Connection] = {}  # in the order of their beginning
        self._waiting: collections.deque[_Connection] = collections.deque()  # slow ones, likewise
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._stopped = False
        self._warm_at = 2 * options.clients
        self._due = [number < options.slow for number in range(options.clients)]  # slow or not, to begin now
        self.ledger = Ledger()

    def run(self) -> None:
        while self._begin_due():
            for fd, events in self._epoll.poll(self._patience()):
                if fd == sys.stdin.fileno():
                    self._listen_to_parent()
                elif fd in self._open:
                    self._proceed(self._open[fd], events)
            now = time.monotonic()
            while self._waiting and self._waiting[0].begun + self._delay_s <= now:
                self._ask(self._waiting.popleft())
            self._give_up(now)
        self.ledger.duration_s = time.monotonic() - self._begun_at

    def _begin_due(self) -> int:
        """Returns how many are open."""
        due, self._due = self._due, []
        for slow in due:
            self._begin(slow)
        return len(self._open) + len(self._due)

    def _patience(self) -> float:
        if self._due:
            return 0.0
        return self._delay_s / 4 if self._waiting else 1.0

    def _listen_to_parent(self) -> None:
        words = os.read(sys.stdin.fileno(), 4096)
        if not words:
            self._stopped = True
            self._due.clear()
            self._epoll.unregister(sys.stdin)
        elif b"mark" in words:
            self.ledger.longest_wait_s = 0.0

    def _begin(self, slow: bool) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        connection = _Connection(socket=made, begun=time.monotonic(), slow=slow)
        self._open[made.fileno()] = connection
        with contextlib.suppress(BlockingIOError):
            made.connect(self._address)
        # Over loopback the handshake is over when connect(2) returns.
        self._epoll.register(made, select.EPOLLIN)
        if slow:
            self._waiting.append(connection)
        else:
            self._ask(connection)

    def _ask(self, connection: _Connection) -> None:
        if connection.asked or connection.socket.fileno() not in self._open:
            return
        try:
            connection.socket.send(self._request)
            connection.asked = True
        except BlockingIOError:  # not connected yet: its SYN is sent again
            self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:
            self._end(connection, _outcome(error))

    def _proceed(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT and not connection.asked:
            self._epoll.modify(connection.socket, select.EPOLLIN)
            self._ask(connection)
        if not events & ~select.EPOLLOUT:
            return
        try:
            received = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(connection, _outcome(error))
            return
        if received and not connection.answer:
            waited_s = time.monotonic() - connection.begun
            self.ledger.longest_wait_s = max(self.ledger.longest_wait_s, waited_s)
            if self._record:
                self.ledger.waits.append((time.time() - waited_s, waited_s))
        connection.answer = (connection.answer + received)[-_TAIL_BYTES:]
        if not received:
            whole = connection.answer and not self._answer_end
            self._end(connection, "answered" if whole else "unanswered")
        elif self._answer_end and connection.answer.endswith(self._answer_end):
            self._end(connection, "answered")

    def _give_up(self, now: float) -> None:
        while self._open:
            oldest = next(iter(self._open.values()))
            if now - oldest.begun < self._timeout_s:
                return
            if len(self.ledger.stuck) < STUCK_MAX:
                self.ledger.stuck.append(_ends(oldest.socket))
            self._end(oldest, "timed_out")

    def _end(self, connection: _Connection, outcome: str) -> None:
        if self._open.pop(connection.socket.fileno(), None) is None:
            return
        connection.socket.close()
        setattr(self.ledger, outcome, getattr(self.ledger, outcome) + 1)
        if outcome == "answered" and self.ledger.answered == self._warm_at:
            print("warm", flush=True)
        if not self._stopped:
            self._due.append(connection.slow)


def _ends(sock: socket.socket) -> str:
    """What the kernel has of both ends, where ss is installed."""
    port = sock.getsockname()[1]
    command = ["ss", "-Htanoep", f"( sport = :{port} or dport = :{port} )"]
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=_END_S, check=False).stdout
    return f"port {port}"


def _outcome(error: OSError) -> str:
    """Which account of the ledger an error of a socket goes to. Raises what is no loss but our own lack."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timed_out"
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--request", type=bytes.fromhex, default=REQUEST, help="in hexadecimal")
    parser.add_argument("--answer-end", default="")
    parser.add_argument("--slow", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = _Loop(options)
    try:
        loop.run()
    except OSError as error:
        sys.exit(f"the load cannot go on: {error}")
    print(json.dumps(dataclasses.asdict(loop.ledger)))


if __name__ == "__main__":
    main()
