"""Our program and its maps without pins: for a throw-away namespace, gone with the process."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from reuseport_tool.group import policy as policies
from reuseport_tool.group.layout import GENERATIONS, new_sockarray
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpf, quic
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.models import Counters, FlowCounters, Policy


class Scratch:
    """A loaded policy; `stack` closes everything.

    Raises:
        MissingCapability, ProgramRejected, Unsupported: from loading.
    """

    def __init__(self, stack: ExitStack, policy: Policy, flows: policies.FlowChoice | None = None) -> None:
        self._stack = stack
        self._maps, self.program = policies.load_policy(policy, stack, flows)
        self._state = State(Place(Path()), self._maps, self.program)

    def add_generation(self, generation: int, listeners: Sequence[socket.socket]) -> bpf.Map:
        """Fill a generation and make it the working one. Returns its sockarray."""
        array = self._stack.enter_context(new_sockarray(len(listeners)))
        for slot, listener in enumerate(listeners):
            SockArray(array).put(slot, listener.fileno())
        self._maps["members"].update_u32(generation % GENERATIONS, len(listeners))
        self._maps["generations"].update_u32(generation % GENERATIONS, array.fd)
        self._state.choice.switch(generation)
        return array

    def give_id_length(self, generation: int, length: int) -> None:
        """Say how long the connection IDs of a generation are, as a QUIC server's answers would."""
        self._maps["quic"].update_u32(generation % GENERATIONS, length)

    def read_answers(self, port: int) -> None:
        """Learn them from what servers on a port answer. Raises as quic.read_answers()."""
        quic.set_port(self._maps["quic"], GENERATIONS, port)
        self._stack.enter_context(quic.read_answers(self._maps, GENERATIONS))

    def flow_counters(self) -> FlowCounters | None:
        return self._state.flows.counters()

    def counters(self) -> Counters:
        return self._state.counters()
