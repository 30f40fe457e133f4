"""One case of `check hot-reload`: server A, the clients in one state, server B, and the steps of a reload."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from reuseport_tool.check import lab
from reuseport_tool.check.lab import Lab, Server
from reuseport_tool.errors import Interrupted, ToolError
from reuseport_tool.kernel import diag, sysctl
from reuseport_tool.kernel.packets import CraftedClient, Family, Wire
from reuseport_tool.models import CheckedWay, ConnectionState, Counters, Policy, Protocol

MIGRATING = (CheckedWay.SYSCTL, CheckedWay.BPF_MIGRATE)
WITH_PROGRAM = (CheckedWay.BPF_DRAIN, CheckedWay.BPF_MIGRATE)
SYNACK_RETRIES = 2  # in the namespaces of bpf-drain
_REQUEST = b"who?"
_TFO_WITHOUT_COOKIE = 0x203  # TFO_CLIENT_ENABLE | TFO_SERVER_ENABLE | TFO_SERVER_COOKIE_NOT_REQD (net/tcp.h)


@dataclass(frozen=True)
class Cell:
    state: ConnectionState
    family: Family
    way: CheckedWay

    @property
    def lives(self) -> bool:
        """The theory: whether the connections survive."""
        if self.way is CheckedWay.CLOSE:
            return False
        return not (self.way is CheckedWay.ACCEPT_DRAIN and self.state.half_open)

    @property
    def slow(self) -> bool:
        return self.state is ConnectionState.NEW_SYN_RECV_TIMER or (
            self.way is CheckedWay.BPF_DRAIN and self.state.half_open
        )


class Missed(ToolError):
    """The connections left the state that the case is about by themselves: another attempt may do better."""


class Trial:
    """One case in the calling thread's namespace. What it opens is closed by the stack.

    Attributes:
        deadline_s, drain_deadline_s: for any condition, and for the end of a drain.
        wake_s: how long a sleeper may sleep on over a filled accept queue.
    """

    deadline_s = 20.0
    drain_deadline_s = 60.0
    wake_s = 2.0

    def __init__(self, opened: Lab, cell: Cell, stack: ExitStack) -> None:
        self.cell = cell
        self.clients: list[CraftedClient] = []
        self._lab = opened
        self._stack = stack
        _write_sysctls(cell)
        self._wire = stack.enter_context(Wire(cell.family, lab.PORT))
        self.old = stack.enter_context(Server("A", lab.listener(cell.family)))
        self.new: Server | None = None
        self._syn_acks: dict[CraftedClient, int] = {}  # how many each client had seen when the reload reached its point
        self._state = None
        if cell.way in WITH_PROGRAM:
            name = f"{cell.state}_{cell.family}_{cell.way}"
            self._state = stack.enter_context(opened.attach(name, Policy.HASH, [self.old.listener.fileno()]))

    def wait(self, condition: Callable[[], bool], timeout_s: float | None = None, interval_s: float = 0.02) -> bool:
        """As Wire.wait(). Raises Interrupted when the whole check ends early."""
        timeout_s = self.deadline_s if timeout_s is None else timeout_s
        held = self._wire.wait(lambda: self._lab.stop.is_set() or condition(), timeout_s, interval_s)
        if self._lab.stop.is_set():
            raise Interrupted("the check was ended early")
        return held

    def counters(self) -> Counters:
        return self._state.counters() if self._state else Counters()

    def bring_up(self, connections: int) -> None:
        """Bring the clients into the state. Raises ToolError when the kernel does not confirm it."""
        self.clients = [self._wire.client() for _ in range(connections)]
        silent = [self._wire.client()] if self.cell.way is CheckedWay.BPF_DRAIN and self.cell.state.half_open else []
        everyone = self.clients + silent
        for client in everyone:
            client.syn(_REQUEST if self.cell.state is ConnectionState.SYN_RECV else b"")
        self.wait(lambda: all(client.syn_acks for client in everyone))
        if self.cell.state is ConnectionState.ESTABLISHED:
            for client in self.clients:
                client.ack(_REQUEST)
        wanted = (0, len(everyone)) if self.cell.state.half_open else (connections, 0)
        if not self.wait(lambda: self._queues() == wanted):
            queued, half_open = self._queues()
            raise ToolError(f"{queued} in the accept queue and {half_open} half-open, not {wanted[0]} and {wanted[1]}")

    def _queues(self) -> tuple[int, int]:
        """Connections in A's accept queue by sock_diag, and half-open ones by the iterator."""
        queued = [entry.accept_queue for entry in diag.bound_sockets(Protocol.TCP) if entry.cookie == self.old.cookie]
        return queued[0] or 0, self._half_open()

    def _half_open(self) -> int:
        return self._lab.listeners.read().listeners[self.old.cookie].half_open

    def start_new(self, listening: socket.socket | None = None) -> Server:
        """Start B, on its own listener or a given one, and wait until it sleeps in epoll_wait.

        With a program, B becomes generation 2, and the working one.
        """
        self.new = self._stack.enter_context(Server("B", listening or lab.listener(self.cell.family)))
        if self._state:
            self._state.generations.create(2)
            self._state.generations[2].add(self.new.listener.fileno())
            self._state.choice.switch(2)
        self.new.watch()
        new = self.new
        if not self.wait(lambda: new.asleep() or new.woken.is_set()):
            raise ToolError("the new server does not sleep in epoll_wait")
        return new

    def mark(self) -> None:
        """Note what the clients have seen so far: what comes later is the work of the reload."""
        self._wire.pump()
        self._syn_acks = {client: client.syn_acks for client in self.clients}

    def close_old(self) -> None:
        self.mark()
        self.old.listener.close()

    def finish(self) -> None:
        """Let the clients send what they held back.

        Raises Missed when the SYN+ACK timer was quicker than the final ACK, ToolError when it did nothing.
        """
        if self.cell.state is ConnectionState.NEW_SYN_RECV_TIMER:
            if not self.wait(self._timer_fired, interval_s=0.1):
                raise ToolError("the SYN+ACK timer neither resent anything nor dropped the requests")
        elif self.cell.state is ConnectionState.NEW_SYN_RECV_ACK:
            self._wire.pump()
            if self._resent() != [False] * len(self.clients):
                raise Missed("the SYN+ACK timer fired before the final ACK was sent")
        if self.cell.state is not ConnectionState.ESTABLISHED:
            for client in self.clients:
                client.ack(_REQUEST if self.cell.state.half_open else b"")

    def _resent(self) -> list[bool]:
        return [client.syn_acks > self._syn_acks[client] for client in self.clients]

    def _timer_fired(self) -> bool:
        return all(self._resent()) or not self._lab.listeners.read().requests

    def wait_drained(self) -> None:
        """Wait until A has no half-open connection. Raises ToolError."""
        if not self.wait(lambda: self._half_open() == 0, self.drain_deadline_s, interval_s=0.1):
            raise ToolError(f"{self._half_open()} half-open connections are left after {self.drain_deadline_s:.0f} s")

    def settle(self) -> bool | None:
        """Wait until every client has heard something. Returns whether the sleeper was woken.

        Where it sleeps on over a filled accept queue it is not, and the connections are accepted by
        hand: they are there, but nobody looks. None when nothing reached it.
        """
        assert self.new is not None
        asleep = False
        if not self.wait(self._concluded, self.wake_s) and self.new.asleep() and not self.new.woken.is_set():
            asleep = self.new.accept_all() > 0
        self.wait(self._concluded)
        if asleep:
            return False
        return True if self.new.woken.is_set() else None

    def _concluded(self) -> bool:
        return all(client.concluded for client in self.clients)


def _write_sysctls(cell: Cell) -> None:
    sysctl.write("net.ipv4.tcp_fastopen", str(_TFO_WITHOUT_COOKIE))
    if cell.way is CheckedWay.SYSCTL:
        sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")
    if cell.way is CheckedWay.BPF_DRAIN:
        sysctl.write("net.ipv4.tcp_synack_retries", str(SYNACK_RETRIES))


def _close(trial: Trial) -> None:
    """B listens beside A, and A closes: what the kernel then does with A's connections is what is checked."""
    trial.start_new()
    trial.close_old()
    trial.finish()


def _accept_drain(trial: Trial) -> None:
    """A accepts until EAGAIN before it closes, and serves what it has accepted."""
    trial.start_new()
    trial.old.accept_all()
    trial.close_old()
    trial.finish()


def _fd_passing(trial: Trial) -> None:
    """No listener closes: A hands its own to B by SCM_RIGHTS, and closes its copy."""
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        socket.send_fds(near, [b"l"], [trial.old.listener.fileno()])
        _, fds, _, _ = socket.recv_fds(far, 1, 1)
    trial.start_new(socket.socket(fileno=fds[0]))
    trial.close_old()
    trial.finish()


def _bpf_drain(trial: Trial) -> None:
    """New connections go to B; A stays until it has no half-open ones, accepts until EAGAIN, and closes."""
    trial.start_new()
    trial.mark()
    trial.finish()
    trial.wait_drained()
    trial.old.accept_all()
    trial.close_old()


# What makes connections survive `sysctl` and `bpf-migrate` is in the namespace and on the group already.
RELOADS: dict[CheckedWay, Callable[[Trial], None]] = {
    CheckedWay.CLOSE: _close,
    CheckedWay.ACCEPT_DRAIN: _accept_drain,
    CheckedWay.FD_PASSING: _fd_passing,
    CheckedWay.BPF_DRAIN: _bpf_drain,
    CheckedWay.SYSCTL: _close,
    CheckedWay.BPF_MIGRATE: _close,
}
