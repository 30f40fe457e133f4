"""The pins of a world in memory: programs, generations and canaries."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from reuseport_tool.errors import Conflict
from reuseport_tool.group.discover import Member
from reuseport_tool.group.pins import AttachedProgram, Running
from reuseport_tool.models import Counters, Endpoint
from tests.unit.reload.fake.part import Part
from tests.unit.reload.fake.records import OURS, Pin


class FakePins(Part):
    def attach(self, endpoint: Endpoint, members: Sequence[Member]) -> AttachedProgram:
        pins, programs = self._world.pins, self._world.programs
        if programs.get(endpoint) not in (None, OURS):
            raise Conflict("a foreign program")
        if endpoint not in pins:
            pins[endpoint] = Pin(generations={1: set()})
        programs[endpoint] = OURS
        pin = pins[endpoint]
        known = set().union(*pin.generations.values())
        pin.generations.setdefault(pin.working, set()).update({member.cookie for member in members} - known)
        counters = self.counters(endpoint)
        assert counters is not None
        return AttachedProgram(working=pin.working, counters=counters)

    def running(self, endpoint: Endpoint) -> Running:
        program = self._world.programs.get(endpoint)
        return Running(ours=program == OURS and endpoint in self._world.pins, program_id=program)

    def attach_again(self, endpoint: Endpoint) -> None:
        self._world.programs[endpoint] = OURS

    def detach(self, endpoint: Endpoint) -> None:
        del self._world.pins[endpoint]
        if self._world.programs.get(endpoint) == OURS:
            del self._world.programs[endpoint]

    def working(self, endpoint: Endpoint) -> int:
        return self._world.pin(endpoint).working

    def generations(self, endpoint: Endpoint) -> tuple[int, ...]:
        return tuple(sorted(self._world.pin(endpoint).generations))

    def cookies(self, endpoint: Endpoint, generation: int) -> frozenset[int]:
        return frozenset(self._world.pin(endpoint).generations.get(generation, set()))

    def make(self, endpoint: Endpoint, generation: int) -> None:
        self._world.pin(endpoint).generations[generation] = set()

    def put(self, endpoint: Endpoint, generation: int, members: Sequence[Member]) -> None:
        self.take_out(endpoint, [member.cookie for member in members])
        self._world.pin(endpoint).generations[generation] |= {member.cookie for member in members}

    def take_out(self, endpoint: Endpoint, cookies: Collection[int]) -> None:
        for members in self._world.pin(endpoint).generations.values():
            members -= set(cookies)

    def remove(self, endpoint: Endpoint, generation: int) -> None:
        del self._world.pin(endpoint).generations[generation]

    def switch(self, endpoint: Endpoint, generation: int) -> float:
        self._world.pin(endpoint).working = generation
        self._world.pin(endpoint).canary = (0, 0.0)
        return 4.2

    def share(self, endpoint: Endpoint, generation: int, percent: float) -> None:
        self._world.pin(endpoint).canary = (generation, percent)

    def canary(self, endpoint: Endpoint) -> tuple[int, float] | None:
        found = self._world.pin(endpoint).canary
        return found if found[0] else None

    def counters(self, endpoint: Endpoint) -> Counters | None:
        pin = self._world.pins.get(endpoint)
        if pin is None:
            return None
        return Counters(
            selected=pin.selected,
            fallback=0,
            migrated_established=pin.migrated,
            migrated_syn_recv=0,
            migrated_new_syn_recv=0,
            dropped=0,
            canary=pin.to_canary,
        )
