"""The generations of a group: their sockarrays, and how many slots of each the program looks at."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator

from reuseport_tool.errors import Conflict, NotFound, UsageError
from reuseport_tool.group import layout, places
from reuseport_tool.group.choice import Choice
from reuseport_tool.kernel import bpf, bpffs, flow_map
from reuseport_tool.kernel.folders import Place
from reuseport_tool.kernel.sockarray import SockArray


class Generation:
    """One generation, by its number, existing or not."""

    def __init__(self, number: int, folder: Place, members: bpf.Map) -> None:
        self._number = number
        self._folder = folder
        self._members = members

    @property
    def pin(self) -> Place:
        """Where its sockarray is pinned."""
        return self._folder / places.STATE / places.generation_name(self._number)

    @property
    def index(self) -> int:
        """Its place in the maps `members` and `generations`."""
        return self._number % layout.GENERATIONS

    @property
    def members(self) -> int:
        """How many slots the program looks at."""
        return self._members.lookup_u32(self.index)

    @members.setter
    def members(self, members: int) -> None:
        self._members.update_u32(self.index, members)

    @contextlib.contextmanager
    def sockarray(self) -> Iterator[SockArray]:
        """Raises NotFound when there is no such generation, Conflict when its pin is not one of ours."""
        try:
            array = bpffs.open_map(self.pin)
        except FileNotFoundError as error:
            others = places.generations(self._folder / places.STATE)
            raise NotFound(
                f"no generation {self._number}", hint=f"there are: {', '.join(map(str, others)) or 'none'}"
            ) from error
        with array:
            if array.type != bpf.MapType.REUSEPORT_SOCKARRAY:
                raise layout.damaged(self._folder)
            yield SockArray(array)

    def slots(self) -> list[tuple[int, int]]:
        """(slot, cookie) of its listeners that are still open."""
        with self.sockarray() as array:
            return list(array.items(self.members))

    def has_listeners(self) -> bool:
        """Whether it exists, and one of its listeners is open."""
        try:
            return bool(self.slots())
        except NotFound:
            return False

    def add(self, fd: int, slot: int | None = None) -> int:
        """Register a listener, by default in the first empty slot. Returns the slot.

        Raises:
            UsageError, Conflict, ToolError: as SockArray.put().
        """
        if slot is None:
            return self.add_all([fd])[0]
        with self.sockarray() as array:
            self._put(array, slot, fd)
        return slot

    def add_all(self, fds: Collection[int]) -> list[int]:
        """Register listeners in the first empty slots. Returns the slots. Raises as add()."""
        with self.sockarray() as array:
            members = self.members
            taken = {used for used, _ in array.items(members)}
            free = (slot for slot in range(members + len(fds)) if slot not in taken)
            slots = list(itertools.islice(free, len(fds)))
            for slot, fd in zip(slots, fds, strict=True):
                self._put(array, slot, fd)
        return slots

    def _put(self, array: SockArray, slot: int, fd: int) -> None:
        if not 0 <= slot < array.capacity:
            raise UsageError(f"no slot {slot}", hint=f"slots are numbered from 0 to {array.capacity - 1}")
        array.put(slot, fd)
        self.widen(slot + 1)

    def widen(self, members: int) -> None:
        """Have the program look at `members` slots at least, also at empty ones behind the last listener."""
        if members > self.members:
            self.members = members

    def empty(self, slot: int) -> None:
        """Take the listener of a slot out. Raises NotFound when the slot is empty."""
        with self.sockarray() as array:
            array.remove(slot)
            used = [other for other, _ in array.items(self.members)]
        self.members = max(used, default=-1) + 1


class Generations:
    """All generations of a group."""

    def __init__(self, folder: Place, maps: dict[str, bpf.Map], choice: Choice) -> None:
        self._folder = folder
        self._maps = maps
        self._choice = choice

    def __getitem__(self, number: int) -> Generation:
        """The one with this number, existing or not."""
        return Generation(number, self._folder, self._maps["members"])

    @property
    def working(self) -> Generation:
        """The one that new connections go to, existing or not."""
        return self[self._choice.working]

    def numbers(self) -> list[int]:
        """The numbers of those that are pinned, lowest first."""
        return places.generations(self._folder / places.STATE)

    def next(self) -> int:
        """The number for a new one: above all that there are."""
        return max([*self.numbers(), self._choice.working]) + 1

    def slots(self) -> dict[int, list[tuple[int, int]]]:
        """The slots() of each that is pinned. Also without the lock: one that goes meanwhile is left out."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number in self.numbers():
            with contextlib.suppress(NotFound):
                found[number] = self[number].slots()
        return found

    def registered(self) -> set[int]:
        """The cookies of all generations."""
        return {cookie for slots in self.slots().values() for _, cookie in slots}

    def create(self, number: int, listeners: int = 0) -> None:
        """Make an empty generation, for so many listeners. It takes the place of the one that is GENERATIONS older.

        Raises:
            Conflict: that older one still has listeners.
        """
        for old in self.numbers():
            if old == number:
                raise Conflict(f"generation {number} exists", hint="'map list' shows the generations")
            if not self[old].slots() and old != self._choice.working:
                self.remove(old)
            elif self[old].index == self[number].index:
                raise Conflict(
                    f"generation {old} still has listeners, and {layout.GENERATIONS} generations is the most",
                    hint="wait until the old servers have stopped",
                )
        made = self[number]
        self._forget_flows(made.index)
        with layout.new_sockarray(listeners) as array:
            bpffs.pin(array, made.pin)  # first: a sockarray in the map without a pin counts as damage
            made.members = 0
            self._maps["generations"].update_u32(made.index, array.fd)

    def _forget_flows(self, index: int) -> None:
        """Forget what is recorded of earlier generations with this place. One that was rolled back had this number."""
        for name in ("connections", "flows"):
            if name in self._maps:
                flow_map.forget(self._maps[name], index, layout.GENERATIONS)
        if "quic" in self._maps:
            self._maps["quic"].update_u32(index, 0)  # the length of their connection IDs

    def remove(self, number: int) -> None:
        """Unpin a generation; the program finds nothing under its number any more."""
        gone = self[number]
        gone.members = 0
        with contextlib.suppress(OSError):
            self._maps["generations"].delete(gone.index)
        gone.pin.unlink()

    def release(self, cookie: int) -> None:
        """Take a listener out of whichever slot it is in, if any: it can be in one only."""
        for number, slots in self.slots().items():
            for slot, other in slots:
                if other == cookie:
                    self[number].empty(slot)
