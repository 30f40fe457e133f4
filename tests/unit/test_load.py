"""Every connection of the load ends in one account of its ledger. The servers are threads that behave in one way."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from reuseport_tool.bench.load import RESET_ON_CLOSE, Ledger, Load
from reuseport_tool.errors import ToolError

ENDS = 30


@contextlib.contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on a port of 127.0.0.1; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = listener.accept()[0]
                    with client, contextlib.suppress(OSError):
                        client.recv(4096)
                        behave(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(ENDS)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def run(port: int, answer_end: str = "", *, warm: bool = True, timeout_s: float = ENDS) -> Ledger:
    with Load("127.0.0.1", port, 4, answer_end=answer_end, slow=1, delay_s=0.01, timeout_s=timeout_s) as load:
        if warm:
            load.await_warm()
        load.mark()
        return load.stop()


@pytest.mark.parametrize("answer_end", ["", "done\n"])
def test_answered(answer_end: str) -> None:
    with serving(lambda client: client.sendall(b"done\n")) as port:
        ledger = run(port, answer_end)
    assert ledger.answered >= 8
    assert (ledger.lost, ledger.stuck) == (0, [])
    assert 0 <= ledger.longest_wait_s < ENDS
    assert ledger.duration_s > 0


def test_a_cut_off_answer_is_none() -> None:
    with serving(lambda client: client.sendall(b"do")) as port:
        ledger = run(port, "done\n", warm=False)
    assert ledger.answered == 0
    assert ledger.unanswered == ledger.lost >= 4


def test_closed_without_a_byte() -> None:
    with serving(lambda _: None) as port:
        ledger = run(port, warm=False)
    assert ledger.unanswered == ledger.lost >= 4


def test_reset() -> None:
    with serving(reset) as port:
        ledger = run(port, warm=False)
    assert ledger.reset == ledger.lost >= 4


def test_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        ledger = run(bound.getsockname()[1], warm=False)
    assert ledger.refused == ledger.lost >= 4


def test_timed_out() -> None:
    gate = threading.Event()
    with serving(lambda _: gate.wait(ENDS) and None) as port:
        ledger = run(port, warm=False, timeout_s=0.5)
        gate.set()
    assert ledger.timed_out == ledger.lost >= 4
    assert 1 <= len(ledger.stuck) <= 3


def test_no_answers_at_all() -> None:
    gate = threading.Event()
    with serving(lambda _: gate.wait(ENDS) and None) as port:
        with Load("127.0.0.1", port, 1, timeout_s=0.2) as load, pytest.raises(ToolError, match="gets no answers"):
            load.await_warm()
        gate.set()


def test_two_ledgers_together() -> None:
    both = Ledger(answered=1, reset=2, longest_wait_s=3, stuck=["a"]).plus(Ledger(answered=4, longest_wait_s=1))
    assert both == Ledger(answered=5, reset=2, longest_wait_s=3, stuck=["a"])
    assert (both.connections, both.lost) == (7, 2)
