"""The maps of one group: which generations it has, which one works, and what the program counted."""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import itertools
import os
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from reuseport_tool.closing import Closing
from reuseport_tool.errors import Conflict, NotFound, UsageError
from reuseport_tool.group import places
from reuseport_tool.kernel import bpf, bpffs, flow_map, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.sockarray import SockArray
from reuseport_tool.models import Counters, FlowCounters, FlowMode, Policy, Program

GENERATIONS = 16
CAPACITY_LEAST = 512
"""Slots of a generation: at least so many, and twice as many as it begins with, so that others can join."""
_COUNTERS = tuple(Counters.__dataclass_fields__)
_CURSORS = 3
SHARES = 10_000
"""The unit of a canary's share: hundredths of a percent."""
_NEXT_PROGRAM = "program_next"


class Choice(enum.IntEnum):
    """The elements of the map `choice`: enum choice of bpf/reuseport.h."""

    WORKING = 0
    CANARY = 1
    SHARE = 2
    STEERED_PORT = 3
    STEERED_ADDRESS = 4


SHAPES = {
    "choice": (bpf.MapType.ARRAY, 4, Choice.STEERED_ADDRESS + 4),
    "members": (bpf.MapType.ARRAY, 4, GENERATIONS),
    "generations": (bpf.MapType.ARRAY_OF_MAPS, 4, GENERATIONS),
    "counters": (bpf.MapType.PERCPU_ARRAY, 8, len(_COUNTERS)),
    "cursors": (bpf.MapType.ARRAY, 4, _CURSORS),
}
"""By name: type, size of a value in bytes, number of elements."""
DEFINES = {"GENERATIONS": GENERATIONS}
"""What the policies are compiled with (bpf/reuseport.h)."""
MAPS = tuple(f"{name.upper()}_FD" for name in SHAPES)
"""What stands for the maps in them; link() has the descriptors."""


_FLOW_COUNTERS = tuple(FlowCounters.__dataclass_fields__)
FLOW_NAMES = ("flows", "flow_counters")
FLOW_MAPS = tuple(f"{name.upper()}_FD" for name in FLOW_NAMES)
"""What stands for the maps of a group that keeps flows, after MAPS."""


def shape(entry: bpf.Map) -> tuple[int, int, int]:
    return entry.type, entry.value_size, entry.max_entries


class State(Closing):
    """The open maps of an attached group. A context manager; closing it leaves the pins."""

    def __init__(self, folder: Place, maps: dict[str, bpf.Map], program: bpf.Program) -> None:
        self.folder = folder
        self._maps = maps
        self.program = program

    @classmethod
    def open(cls, folder: Place) -> State:
        """Open the pins below a group's folder.

        Raises:
            NotFound: nothing is attached.
            Conflict: a pin is missing, or is not one of those that this tool makes.
        """
        with ExitStack() as stack:
            try:
                program = stack.enter_context(bpffs.open_program(folder / places.STATE / "program"))
                maps = {name: stack.enter_context(bpffs.open_map(folder / places.STATE / name)) for name in SHAPES}
            except FileNotFoundError as error:
                if (folder / places.STATE).exists():
                    raise _damaged(folder) from error
                raise NotFound(
                    "no program of this tool is attached", hint="attach one with: attach ENDPOINT"
                ) from error
            except OSError as error:
                raise bpf.translate(error, f"opening the pins in {folder / places.STATE}") from error
            if any(shape(entry) != SHAPES[name] for name, entry in maps.items()):
                raise _damaged(folder)
            for name in FLOW_NAMES:
                with contextlib.suppress(FileNotFoundError):
                    maps[name] = stack.enter_context(bpffs.open_map(folder / places.STATE / name))
            stack.pop_all()
            return cls(folder, maps, program)

    @classmethod
    def exists(cls, folder: Place) -> bool:
        return places.is_attached(folder)

    def close(self) -> None:
        self.program.close()
        for entry in self._maps.values():
            entry.close()

    @property
    def working(self) -> int:
        """Number of the working generation, 0 for none."""
        return self._maps["choice"].lookup_u32(Choice.WORKING)

    @property
    def flow_mode(self) -> FlowMode:
        """Whether the group keeps flows."""
        return FlowMode.ADDRESS if all(name in self._maps for name in FLOW_NAMES) else FlowMode.NONE

    @property
    def flow_capacity(self) -> int:
        """How many flows can be recorded; 0 where none are."""
        return self._maps["flows"].max_entries if self.flow_mode is not FlowMode.NONE else 0

    def flows(self) -> Iterator[flow_map.RawFlow]:
        """The recorded flows; none where the group keeps none."""
        if self.flow_mode is not FlowMode.NONE:
            yield from flow_map.flows(self._maps["flows"])

    def flow_counters(self) -> FlowCounters | None:
        """Sums over the CPUs; None where the group keeps no flows."""
        if self.flow_mode is FlowMode.NONE:
            return None
        counters = self._maps["flow_counters"]
        return FlowCounters(**{name: _sum(counters.lookup(index)) for index, name in enumerate(_FLOW_COUNTERS)})

    def add_flows(self, entries: int) -> None:
        """Make and pin what a program that keeps flows needs."""
        with ExitStack() as stack:
            made = new_flow_maps(stack, entries)
            for name, entry in made.items():
                pin = self.folder / places.STATE / name
                pin.unlink()
                bpffs.pin(entry, pin)
            stack.pop_all()
        self._maps |= made

    def remove_flows(self) -> None:
        """Forget the flows, after the program that kept them."""
        for name in FLOW_NAMES:
            if name in self._maps:
                self._maps.pop(name).close()
            (self.folder / places.STATE / name).unlink()

    @property
    def canary(self) -> tuple[int, int] | None:
        """Number of the canary generation and its share in SHARES, None when there is none."""
        generation, share = (self._maps["choice"].lookup_u32(index) for index in (Choice.CANARY, Choice.SHARE))
        return (generation, share) if generation else None

    def switch(self, generation: int) -> float:
        """Make a generation the working one, and end a canary. Returns the duration of the commit in microseconds.

        This update is the commit point: one element of an array, of which the program reads all or
        nothing. An update of the array of maps would be as atomic, but makes the caller wait for an
        RCU grace period (kernel/bpf/syscall.c, maybe_wait_bpf_programs()): milliseconds.
        """
        start = time.perf_counter()
        self._maps["choice"].update_u32(Choice.WORKING, generation)
        duration_us = (time.perf_counter() - start) * 1e6
        self.end_canary()
        return duration_us

    def share(self, generation: int, share: int) -> None:
        """Give a generation beside the working one a share of the new connections, in SHARES; it may be 0.

        The order of the updates makes every state between them a legal one.
        """
        if self._maps["choice"].lookup_u32(Choice.CANARY) != generation:
            self._maps["choice"].update_u32(Choice.SHARE, 0)
            self._maps["choice"].update_u32(Choice.CANARY, generation)
        self._maps["choice"].update_u32(Choice.SHARE, share)

    def end_canary(self) -> None:
        """All new connections go to the working generation."""
        for index in (Choice.SHARE, Choice.STEERED_PORT, Choice.CANARY):
            self._maps["choice"].update_u32(index, 0)

    @contextlib.contextmanager
    def steered(self, address: str, port: int) -> Iterator[None]:
        """Inside, a connection from this address and port goes to the canary generation, whatever its share."""
        packed = ipaddress.ip_address(address).packed.ljust(16, b"\0")
        for word in range(4):
            value = int.from_bytes(packed[4 * word : 4 * word + 4], sys.byteorder)
            self._maps["choice"].update_u32(Choice.STEERED_ADDRESS + word, value)
        self._maps["choice"].update_u32(Choice.STEERED_PORT, socket.htons(port))
        try:
            yield
        finally:
            self._maps["choice"].update_u32(Choice.STEERED_PORT, 0)

    def counters(self) -> Counters:
        """Sums over the CPUs."""
        return Counters(**{name: _sum(self._maps["counters"].lookup(index)) for index, name in enumerate(_COUNTERS)})

    def generations(self) -> list[int]:
        """The numbers of the generations that are pinned, lowest first."""
        return places.generations(self.folder / places.STATE)

    def next_generation(self) -> int:
        """The number for a new generation: above all that there are."""
        return max([*self.generations(), self.working]) + 1

    def members(self, generation: int) -> int:
        """How many slots of a generation the program looks at."""
        return self._maps["members"].lookup_u32(generation % GENERATIONS)

    @contextlib.contextmanager
    def sockarray(self, generation: int) -> Iterator[SockArray]:
        """Raises NotFound when there is no such generation, Conflict when its pin is not one of ours."""
        try:
            array = bpffs.open_map(self._pin(generation))
        except FileNotFoundError as error:
            raise NotFound(
                f"no generation {generation}", hint=f"there are: {', '.join(map(str, self.generations())) or 'none'}"
            ) from error
        with array:
            if array.type != bpf.MapType.REUSEPORT_SOCKARRAY:
                raise _damaged(self.folder)
            yield SockArray(array)

    def slots(self, generation: int) -> list[tuple[int, int]]:
        """(slot, cookie) of the listeners of a generation that are still open."""
        with self.sockarray(generation) as array:
            return list(array.items(self.members(generation)))

    def has_listeners(self, generation: int) -> bool:
        """Whether there is such a generation, and one of its listeners is open."""
        return generation in self.generations() and bool(self.slots(generation))

    def registered(self) -> set[int]:
        """The cookies of all generations. Also without the lock: one that goes meanwhile has none."""
        cookies: set[int] = set()
        for number in self.generations():
            with contextlib.suppress(NotFound):
                cookies |= {cookie for _, cookie in self.slots(number)}
        return cookies

    def create_generation(self, generation: int, listeners: int = 0) -> None:
        """Make an empty generation, for so many listeners. It takes the place of the one that is GENERATIONS older.

        Raises:
            Conflict: that older one still has listeners.
        """
        for old in self.generations():
            if old == generation:
                raise Conflict(f"generation {generation} exists")
            if not self.slots(old) and old != self.working:
                self.remove_generation(old)
            elif old % GENERATIONS == generation % GENERATIONS:
                raise Conflict(
                    f"generation {old} still has listeners, and {GENERATIONS} generations is the most",
                    hint="wait until the old servers have stopped",
                )
        index = generation % GENERATIONS
        with new_sockarray(listeners) as array:
            self._maps["members"].update_u32(index, 0)
            self._maps["generations"].update_u32(index, array.fd)
            bpffs.pin(array, self._pin(generation))

    def remove_generation(self, generation: int) -> None:
        """Unpin a generation; the program finds nothing under its number any more."""
        index = generation % GENERATIONS
        self._maps["members"].update_u32(index, 0)
        self._pin(generation).unlink()
        with contextlib.suppress(OSError):
            self._maps["generations"].delete(index)

    def add(self, generation: int, fd: int, slot: int | None = None) -> int:
        """Register a listener, by default in the first empty slot. Returns the slot.

        Raises:
            UsageError, Conflict, ToolError: as SockArray.put().
        """
        if slot is None:
            return self.add_all(generation, [fd])[0]
        with self.sockarray(generation) as array:
            self._put(generation, array, slot, fd)
        return slot

    def add_all(self, generation: int, fds: Collection[int]) -> list[int]:
        """Register listeners in the first empty slots. Returns the slots. Raises as add()."""
        with self.sockarray(generation) as array:
            members = self.members(generation)
            taken = {used for used, _ in array.items(members)}
            free = (slot for slot in range(members + len(fds)) if slot not in taken)
            slots = list(itertools.islice(free, len(fds)))
            for slot, fd in zip(slots, fds, strict=True):
                self._put(generation, array, slot, fd)
        return slots

    def _put(self, generation: int, array: SockArray, slot: int, fd: int) -> None:
        if not 0 <= slot < array.capacity:
            raise UsageError(f"no slot {slot}", hint=f"slots are 0 to {array.capacity - 1}")
        array.put(slot, fd)
        if slot >= self.members(generation):
            self._maps["members"].update_u32(generation % GENERATIONS, slot + 1)

    def widen(self, generation: int, members: int) -> None:
        """Have the program look at `members` slots at least, also at empty ones behind the last listener."""
        if members > self.members(generation):
            self._maps["members"].update_u32(generation % GENERATIONS, members)

    def remove(self, generation: int, slot: int) -> None:
        """Take the listener of a slot out. Raises NotFound when the slot is empty."""
        with self.sockarray(generation) as array:
            array.remove(slot)
            used = [other for other, _ in array.items(self.members(generation))]
        self._maps["members"].update_u32(generation % GENERATIONS, max(used, default=-1) + 1)

    def release(self, cookie: int) -> None:
        """Take a listener out of whichever slot it is in, if any: it can be in one only."""
        for generation in self.generations():
            for slot, other in self.slots(generation):
                if other == cookie:
                    self.remove(generation, slot)

    def policy(self) -> Program:
        """The pinned program; `policy` is its name as `attach --policy` takes it, or as its file has it."""
        info = self.program.info()
        return Program(id=info.id, name=info.name, policy=policy_name(info.name))

    def replace_program(self, replacement: bpf.Program, fd: int) -> None:
        """Run another program over the same maps, attached through the listener `fd`.

        Killed between the two last steps, settle_program() finishes it.
        """
        following = self.folder / places.STATE / _NEXT_PROGRAM
        following.unlink()
        bpffs.pin(replacement, following)
        sockets.attach_program(fd, replacement)  # commit point
        self._adopt_next()

    def settle_program(self, attached: int | None) -> None:
        """Finish, or forget, the replace_program() of a run that was killed; `attached` is what runs."""
        following = self.folder / places.STATE / _NEXT_PROGRAM
        with contextlib.suppress(FileNotFoundError), bpffs.open_program(following) as pinned:
            if pinned.info().id == attached:
                self._adopt_next()
            else:
                following.unlink()

    def _adopt_next(self) -> None:
        pin = self.folder / places.STATE / "program"
        (self.folder / places.STATE / _NEXT_PROGRAM).rename(pin)
        self.program.close()
        self.program = bpffs.open_program(pin)

    def link(self) -> dict[str, int]:
        """The open maps, as link() has them."""
        return link(self._maps)

    def _pin(self, generation: int) -> Place:
        return self.folder / places.STATE / places.generation_name(generation)


def policy_name(program: str) -> str:
    """The policy of a program, as `attach --policy` takes it, or as its file has it."""
    name = program.replace("_", "-")
    return name if name in tuple(Policy) else program


def _damaged(folder: Place) -> Conflict:
    group = places.endpoint_of(folder.name) or "ENDPOINT"
    return Conflict(
        f"the pins in {folder / places.STATE} are damaged",
        hint=f"'attach {group} --repair' makes them anew, 'detach {group}' removes program and pins",
    )


def link(maps: dict[str, bpf.Map]) -> dict[str, int]:
    """The descriptors of a group's maps by MAPS and, where it keeps flows, FLOW_MAPS."""
    return {f"{name.upper()}_FD": entry.fd for name, entry in maps.items()}


def new_sockarray(listeners: int = 0) -> bpf.Map:
    """A generation's map, for so many listeners."""
    capacity = max(CAPACITY_LEAST, 2 * listeners)
    return bpf.Map.create(bpf.MapType.REUSEPORT_SOCKARRAY, "generation", value_size=8, max_entries=capacity)


def _sum(values: bytes) -> int:
    return sum(int.from_bytes(values[at : at + 8], sys.byteorder) for at in range(0, len(values), 8))


@dataclass(frozen=True)
class NewState:
    """Maps of a group that are not pinned yet."""

    maps: dict[str, bpf.Map]

    def pin(self, folder: Place, program: bpf.Program) -> State:
        """Pin everything aside and rename it into place, which is the commit point of the pins.

        The caller holds the lock of `folder`. Pins that a killed run or an ended server left are removed.
        """
        aside = folder / f"next_{os.getpid()}"
        places.clean(folder)
        aside.make()
        bpffs.pin(program, aside / "program")
        for name, entry in self.maps.items():
            bpffs.pin(entry, aside / name)
        aside.rename(folder / places.STATE)
        return State(folder, self.maps, program)


def new_maps(stack: ExitStack, flow_entries: int = 0) -> NewState:
    """Fresh maps without a generation, with room for flows if any; `stack` closes them unless its caller pops it."""
    with new_sockarray() as inner:
        maps = {
            name: stack.enter_context(
                bpf.Map.create(
                    kind,
                    name,
                    value_size=size,
                    max_entries=entries,
                    inner=inner if kind is bpf.MapType.ARRAY_OF_MAPS else None,
                )
            )
            for name, (kind, size, entries) in SHAPES.items()
        }
    if flow_entries:
        maps |= new_flow_maps(stack, flow_entries)
    return NewState(maps)


def new_flow_maps(stack: ExitStack, entries: int) -> dict[str, bpf.Map]:
    """Empty maps of flows; `stack` closes them unless its caller pops it."""
    counters = len(_FLOW_COUNTERS)
    return {
        "flows": stack.enter_context(flow_map.create(entries)),
        "flow_counters": stack.enter_context(
            bpf.Map.create(bpf.MapType.PERCPU_ARRAY, "flow_counters", value_size=8, max_entries=counters)
        ),
    }
