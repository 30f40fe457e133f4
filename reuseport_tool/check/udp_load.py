"""The clients of `check udp-reload`."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from reuseport_tool.check.pace import USUAL, Pace
from reuseport_tool.check.udp_server import FENCE, HELLO
from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError

CLIENTS = 10
KNOWN_FLOWS = 900
_GAP_S = 0.002
_FULL_GAP_S = 0.02
_FLOOD_GAP_S = 0.0005
_UNDER_WAY, _UNDER_WAY_MAX = 200, 250  # a receive buffer of the default size has room for 277 datagrams
_AGAIN_S = 1.0
_DEADLINE_S = 60.0
_FIRST_PORT = 20000


def _socket(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.connect((address, port))
    return made


class Background(Closing):
    """A function in a thread of its own, in the calling thread's namespace. close() raises what the function raised.

    Args:
        act: is given an event that is set when it is to end.
    """

    def __init__(self, act: Callable[[threading.Event], None]) -> None:
        self._act = act
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Let it end."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._act(self._stop)
        except Exception as error:
            self._error = error


class Asking(Closing):
    """What all clients have: a count of what they have sent, in the background, and an end after the switch.

    Attributes:
        sent: datagrams so far.
    """

    _background: Background

    def __init__(self, pace: Pace) -> None:
        self.sent = 0
        self._pace = pace
        self._switched: Path | None = None

    def end_after(self, switched: Path) -> None:
        """Send some more when this file is there, and then none."""
        self._switched = switched

    def go_on(self, count: int) -> None:
        """Return when so many more datagrams were sent, or no more are."""
        wanted = self.sent + count
        while self._background.runs and self.sent < wanted:
            time.sleep(self._pace.seconds(_GAP_S))

    def _has_switched(self) -> bool:
        return self._switched is not None and self._switched.exists()


class UdpLoad(Asking):
    """Clients that send in turn at a steady rate, and count what is answered. A context manager.

    Few datagrams are under way at a time, so that a server that does not get the CPU, for however long, loses none. It
    begins when every client was answered, and ends when every client was answered again: what a server answers at all,
    it has answered by then, because each of its sockets is read in order.

    Raises:
        ToolError: nobody answers.
    """

    def __init__(self, address: str, port: int, pace: Pace = USUAL) -> None:
        super().__init__(pace)
        self._clients = [_socket(address, port) for _ in range(CLIENTS)]
        self._by_fd = {client.fileno(): client for client in self._clients}
        self._poll = select.poll()
        for client in self._clients:
            client.setblocking(False)
            self._poll.register(client, select.POLLIN)
        self._greeted: set[int] = set()
        self._after: tuple[int, int] | None = None
        self._answered = 0
        self._known_lost = 0
        with contextlib.ExitStack() as failing:
            failing.callback(self._close_clients)
            self._greet(HELLO)
            failing.pop_all()
        self._background = Background(self._send_all)

    def close(self) -> None:
        """Send no more, and wait for what is still answered."""
        try:
            self._background.close()
            self._greet(FENCE)
        finally:
            self._close_clients()

    @property
    def lost(self) -> int:
        """Datagrams without an answer."""
        return self.sent - self._answered

    @property
    def _under_way(self) -> int:
        """Those that may still be answered."""
        return self.lost - self._known_lost

    def _close_clients(self) -> None:
        for client in self._clients:
            client.close()

    def _greet(self, payload: bytes) -> None:
        """Send this from every client until each has an answer."""
        self._greeted.clear()
        patience_s = self._pace.seconds(_DEADLINE_S)
        deadline = time.monotonic() + patience_s
        while waiting := self._by_fd.keys() - self._greeted:
            if time.monotonic() > deadline:
                raise ToolError(f"{len(waiting)} of {CLIENTS} clients get no answer within {patience_s:g} s")
            for fd in waiting:
                _send(self._by_fd[fd], payload)
            again = time.monotonic() + _AGAIN_S
            while not self._greeted >= waiting and (left_s := again - time.monotonic()) > 0:
                self._read(left_s)
        while self._read(0):
            pass

    def _send_all(self, stop: threading.Event) -> None:
        due_s = time.monotonic()
        while not stop.is_set() and not self._is_over():
            _send(self._clients[self.sent % CLIENTS], b"datagram")
            self.sent += 1
            if self._under_way >= _UNDER_WAY_MAX:
                self._greet(FENCE)
                self._known_lost = self.lost
            gap_s = self._pace.seconds(_GAP_S if self._under_way < _UNDER_WAY else _FULL_GAP_S)
            due_s = max(due_s + gap_s, time.monotonic())  # a stall is not made up for by a burst
            while (left_s := due_s - time.monotonic()) > 0:
                self._read(left_s)

    def _is_over(self) -> bool:
        """Whether another ten of each client were sent after the switch."""
        if self._after is None and self._has_switched():
            self._after = self.sent, CLIENTS * 10
        return self._after is not None and self.sent >= sum(self._after)

    def _read(self, wait_s: float) -> int:
        """Returns how many were read."""
        count = 0
        for fd, _ in self._poll.poll(wait_s * 1000):
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                data = self._by_fd[fd].recv(64)
                count += 1
                if data.endswith((HELLO, FENCE)):
                    self._greeted.add(fd)
                else:
                    self._answered += 1
        return count


def _send(client: socket.socket, payload: bytes) -> None:
    try:
        client.send(payload)
    except ConnectionRefusedError:  # an earlier datagram was; this one has not been sent
        with contextlib.suppress(ConnectionRefusedError):
            client.send(payload)


class Flood(Closing):
    """Many flows of one datagram each, the next one when the one before was answered; KNOWN_FLOWS of them at first."""

    def __init__(self, address: str, port: int, pace: Pace) -> None:
        self._address, self._port = address, port
        self._gap_s = pace.seconds(_FLOOD_GAP_S)
        for number in range(KNOWN_FLOWS):
            self._pass(_FIRST_PORT + number)
        self._passing = Background(self._pass_all)

    def close(self) -> None:
        """No more of them."""
        self._passing.close()

    def _pass_all(self, stop: threading.Event) -> None:
        while not stop.wait(self._gap_s):
            self._pass(0)

    def _pass(self, source_port: int) -> None:
        """One flow. Where no answer comes the next one begins after a while."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client, contextlib.suppress(OSError):
            client.settimeout(_AGAIN_S)
            client.bind(("", source_port))
            client.connect((self._address, self._port))
            client.send(b"flood")
            client.recv(64)
