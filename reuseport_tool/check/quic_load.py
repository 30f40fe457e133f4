"""The QUIC clients of `check udp-reload`: crafted packets, and addresses that change."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack, suppress

from reuseport_tool.check.pace import USUAL, Pace
from reuseport_tool.check.udp_load import CLIENTS, Asking, Background
from reuseport_tool.closing import Closing
from reuseport_tool.errors import ToolError
from reuseport_tool.kernel import quic_packets
from reuseport_tool.waiting import readable

_GAP_S = 0.005
_AGAIN_S = 1.0
_DEADLINE_S = 60.0
_ANSWER_S = 8.0
_ROUNDS_AFTER = 10


class QuicClient(Closing):
    """One connection. Its datagrams have the ID that the server chose for it, and after a number that grows."""

    def __init__(self, address: str, port: int, pace: Pace = USUAL) -> None:
        self._server = address, port
        self._pace = pace
        self._socket = self._connected()
        self._id = self._handshake()
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def move(self, *, renewed: bool) -> None:
        """Go on from another port; `renewed`: with another ID as well, which the server gave before in secret."""
        self._socket.close()
        self._socket = self._connected()
        self._number += renewed

    def ask(self, wait_s: float) -> bool:
        """Whether the server answers within this time."""
        asked = quic_packets.short(quic_packets.renewed(self._id, self._number))
        self._send(asked)
        deadline = time.monotonic() + wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._answer(left_s) == asked:  # a handshake may have been answered twice
                return True
        return False

    def _send(self, packet: bytes) -> None:
        with suppress(ConnectionRefusedError):
            self._socket.send(packet)

    def _connected(self) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET, socket.SOCK_DGRAM)
        made.connect(self._server)
        made.setblocking(False)
        return made

    def _handshake(self) -> bytes:
        """Returns the ID that the server chose. Raises ToolError."""
        begun = quic_packets.initial(os.urandom(8))
        patience_s = self._pace.seconds(_DEADLINE_S)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            self._send(begun)
            answer = self._answer(_AGAIN_S)
            if answer is not None:
                chosen = quic_packets.source(answer)
                self._send(quic_packets.long(quic_packets.HANDSHAKE, chosen))
                return chosen
        raise ToolError(f"the server does not answer a handshake within {patience_s:g} s")

    def _answer(self, wait_s: float) -> bytes | None:
        try:
            return self._socket.recv(2048) if readable(self._socket, wait_s) else None
        except OSError:  # refused: nobody is bound
            return None


class QuicLoad(Asking):
    """Clients that ask in turn, each when it has its answer. A context manager.

    It stops at the first datagram that nobody answers: a connection is dead then. After the switch all clients
    move, and ask some more.

    Args:
        renewed: as QuicClient.move(), at the switch.

    Raises:
        ToolError: nobody answers a handshake.
    """

    def __init__(self, address: str, port: int, *, renewed: bool, pace: Pace = USUAL) -> None:
        super().__init__(pace)
        self._renewed = renewed
        self.lost = 0
        with ExitStack() as clients:
            self._clients = [clients.enter_context(QuicClient(address, port, pace)) for _ in range(CLIENTS)]
            self._background = Background(self._ask_all)
            self._owned = clients.pop_all()

    def close(self) -> None:
        """Ask no more."""
        with self._owned:
            self._background.close()

    def _ask_all(self, stop: threading.Event) -> None:
        while not stop.is_set() and not self._has_switched():
            if not self._round(stop):
                return
        if self._has_switched():
            for client in self._clients:
                client.move(renewed=self._renewed)
            for _ in range(_ROUNDS_AFTER):
                if not self._round(stop):
                    return

    def _round(self, stop: threading.Event) -> bool:
        """Whether all were answered."""
        for client in self._clients:
            self.sent += 1
            if not client.ask(self._pace.seconds(_ANSWER_S)):
                self.lost += 1
                return False
            stop.wait(self._pace.seconds(_GAP_S))
        return True
