"""The state of an attached group: its program and its maps, open."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

from reuseport_tool.closing import Closing
from reuseport_tool.errors import NotFound
from reuseport_tool.group import intact, layout, places
from reuseport_tool.group.choice import Choice
from reuseport_tool.group.flow_maps import FlowMaps, read_answers
from reuseport_tool.group.generations import Generations
from reuseport_tool.kernel import bpf, bpffs, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Counters, FlowMode, Policy, Program

_NEXT_PROGRAM = "program_next"


class State(Closing):
    """The open maps of an attached group. A context manager; closing it leaves the pins."""

    def __init__(self, folder: Place, maps: dict[str, bpf.Map], program: bpf.Program) -> None:
        self.folder = folder
        self.program = program
        self.choice = Choice(maps["choice"])
        self.generations = Generations(folder, maps, self.choice)
        self.flows = FlowMaps(folder, maps)
        self._maps = maps

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
                maps = {
                    name: stack.enter_context(bpffs.open_map(folder / places.STATE / name)) for name in layout.SHAPES
                }
            except FileNotFoundError as error:
                if (folder / places.STATE).exists():
                    raise layout.damaged(folder) from error
                raise NotFound(
                    "no program of this tool is attached", hint="attach one with: attach ENDPOINT"
                ) from error
            except OSError as error:
                raise bpf.translate(error, f"opening the pins in {folder / places.STATE}") from error
            if any(layout.shape(entry) != layout.SHAPES[name] for name, entry in maps.items()):
                raise layout.damaged(folder)
            opened = stack.enter_context(cls(folder, maps, program))
            opened.flows.take(program)
            if not intact.is_whole(program, maps) or intact.lost_generations(
                maps["generations"], opened.generations.numbers
            ):
                raise layout.damaged(folder)
            is_quic = opened.flows.mode is FlowMode.QUIC
            if is_quic and not (folder / places.STATE / layout.EGRESS).exists():
                raise layout.damaged(folder)
            stack.pop_all()
            return opened

    @classmethod
    def create(cls, folder: Place, maps: dict[str, bpf.Map], program: bpf.Program) -> State:
        """Pin everything aside and rename it into place, which is the commit point of the pins.

        The caller holds the lock of `folder`. Pins that a killed run or an ended server left are removed.
        """
        aside = folder / f"next_{os.getpid()}"
        places.clean(folder)
        aside.make()
        bpffs.pin(program, aside / "program")
        for name, entry in maps.items():
            bpffs.pin(entry, aside / name)
        read_answers(maps, folder, aside)
        aside.rename(folder / places.STATE)
        return cls(folder, maps, program)

    @classmethod
    def exists(cls, folder: Place) -> bool:
        return places.is_attached(folder)

    def close(self) -> None:
        self.program.close()
        for entry in self._maps.values():
            entry.close()

    def counters(self) -> Counters:
        """Sums over the CPUs."""
        counters = self._maps["counters"]
        return Counters(
            **{name: layout.sum_of_cpus(counters.lookup(index)) for index, name in enumerate(layout.COUNTERS)}
        )

    def link(self) -> dict[str, int]:
        """The open maps, as layout.link() has them."""
        return layout.link(self._maps)

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
        self.flows.take(self.program)


def policy_name(program: str) -> str:
    """The policy of a program, as `attach --policy` takes it, or as its file has it."""
    name = program.replace("_", "-")
    return name if name in tuple(Policy) else program
