"""Where queued requests go when the listeners of an old generation close one after the other.

A and B are the old generation and C and D the new one; each has one request in its accept queue. A
closes, then B. Our program gives their requests to C and D. The kernel's own choice
(net.ipv4.tcp_migrate_req) is any listener that is left: A's request may go to B, and move again.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from reuseport_tool.check import lab
from reuseport_tool.check.lab import Lab, Server
from reuseport_tool.errors import MissingCapability, ToolError, Unsupported
from reuseport_tool.kernel import diag, mib, netns, sockets, sysctl
from reuseport_tool.kernel.packets import CraftedClient, Family, Wire
from reuseport_tool.models import CheckedWay, Move, Policy, Protocol, Redistribution

_OLD, _NEW = ("A", "B"), ("C", "D")
_DEADLINE_S = 20.0


def redistribute(opened: Lab, ways: Iterable[CheckedWay]) -> Redistribution:
    """Play it with the ways sysctl and bpf-migrate.

    ok says that every request was answered by C or D, that the kernel counted every move, and that
    with bpf-migrate none went by way of B.
    """
    moves: list[Move] = []
    wrong: list[str] = []
    for way in ways:
        try:
            with netns.throw_away(), ExitStack() as stack:
                played, counted, hops = _Scene(opened, way, stack).play()
        except (Unsupported, MissingCapability):
            raise
        except ToolError as error:
            wrong.append(f"{way}: could not run: {error.message}")
            continue
        moves += played
        wrong += [f"{way}: the request of {move.queued_on} went astray" for move in played if not _right(move)]
        if counted != hops:
            wrong.append(f"{way}: the queues say {hops} migrations, the kernel {counted}")
    return Redistribution(moves=tuple(moves), ok=not wrong, detail="; ".join(wrong))


def _right(move: Move) -> bool:
    if move.queued_on in _NEW:
        return move.answered_by == move.queued_on and not move.via
    return move.answered_by in _NEW and (not move.via or move.strategy == CheckedWay.SYSCTL)


class _Scene:
    """The four listeners in the calling thread's namespace."""

    def __init__(self, opened: Lab, way: CheckedWay, stack: ExitStack) -> None:
        self._way = way
        self._wire = stack.enter_context(Wire(Family.IPV4, lab.PORT))
        self._servers: dict[str, Server] = {}
        self._clients: dict[str, CraftedClient] = {}
        self._listen(_OLD, stack)
        fds = [server.listener.fileno() for server in self._servers.values()]
        self._state = stack.enter_context(opened.attach(f"redistribution_{way}", Policy.ROUND_ROBIN, fds))
        self._queue_on(_OLD)
        self._listen(_NEW, stack)
        self._state.generations.create(2)
        for name in _NEW:
            self._state.generations[2].add(self._servers[name].listener.fileno())
        self._state.choice.switch(2)
        self._queue_on(_NEW)
        if way is CheckedWay.SYSCTL:  # the program has dealt out the requests, the kernel moves them
            sockets.detach_program(fds[0])
            sysctl.write(sysctl.TCP_MIGRATE_REQ, "1")

    def _listen(self, names: Iterable[str], stack: ExitStack) -> None:
        for name in names:
            self._servers[name] = stack.enter_context(Server(name, lab.listener(Family.IPV4)))

    def _queue_on(self, names: Iterable[str]) -> None:
        """One request each: the program deals them out in turn, and the queues tell who got which."""
        for _ in names:
            before = self._queues()
            client = self._queue_one(before)
            self._clients[_grown(before, self._queues())[0]] = client
        if any(self._queues()[name] != 1 for name in names):
            raise ToolError(f"the requests were not dealt out one to each listener: {self._queues()}")

    def _queue_one(self, before: dict[str, int]) -> CraftedClient:
        client = self._wire.client()
        client.syn()
        self._wire.wait(lambda: client.syn_acks > 0, _DEADLINE_S)
        client.ack(b"who?")
        if not self._wire.wait(lambda: self._queues() != before, _DEADLINE_S):
            raise ToolError("a request did not reach an accept queue")
        return client

    def _queues(self) -> dict[str, int]:
        """The length of each open listener's accept queue."""
        names = {server.cookie: name for name, server in self._servers.items()}
        return {
            names[entry.cookie]: entry.accept_queue or 0
            for entry in diag.bound_sockets(Protocol.TCP)
            if entry.cookie in names
        }

    def play(self) -> tuple[list[Move], int, int]:
        """The moves, the growth of TCPMigrateReqSuccess, and the migrations that the queues show."""
        before = mib.read()
        held = {name: [name] for name in self._servers}  # the requests in a queue, by where they began
        paths: dict[str, list[str]] = {name: [] for name in self._servers}
        for closing in _OLD:
            queues = self._queues()
            self._servers[closing].listener.close()
            for request, taker in zip(held.pop(closing), _grown(queues, self._queues()), strict=False):
                held[taker].append(request)
                paths[request].append(taker)
        for name in _NEW:
            self._servers[name].watch()
        self._wire.wait(lambda: all(client.concluded for client in self._clients.values()), _DEADLINE_S)
        counted = mib.read().since(before).TCPMigrateReqSuccess
        moves = [self._move(name, path) for name, path in paths.items()]
        return moves, counted, sum(len(path) for path in paths.values())

    def _move(self, name: str, path: list[str]) -> Move:
        return Move(
            strategy=self._way,
            queued_on=name,
            via=tuple(path[:-1]),
            answered_by=self._clients[name].answer.decode() or "-",
        )


def _grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """The listeners whose queue has grown, each as often as it has."""
    return [name for name, length in after.items() for _ in range(length - before.get(name, 0))]
