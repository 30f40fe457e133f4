"""State folders with foreign, broken or missing pins: every verb gives an exit code and a message, never a traceback.

The verbs run in forked children of this process, in which everything is imported already.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport_tool.cli.main import run
from reuseport_tool.group import layout, places
from reuseport_tool.group import policy as policies
from reuseport_tool.group.state import State
from reuseport_tool.kernel import bpf, bpffs, bytecode, loopback, netns, sockets
from reuseport_tool.kernel.folders import Place
from reuseport_tool.models import Endpoint, Policy, Protocol
from tests.servers import restart

PORT = 8080
GROUP = Endpoint(protocol=Protocol.TCP, address="127.0.0.1", port=PORT)
CODES = (0, 1, 2, 3, 6, 7, 8)
DEADLINE_S = 30
VERBS = {
    "status": ("status", PORT),
    "status of all": ("status",),
    "map list": ("map", "list"),
    "map show": ("map", "show", PORT),
    "map add": ("map", "add", PORT),
    "map switch": ("map", "switch", PORT, 1),
    "map remove": ("map", "remove", PORT, "--generation", 1, "--slot", 0),
    "attach": ("attach", PORT),
    "attach another": ("attach", PORT, "--policy", "cpu"),
    "resume": ("reload", PORT, "--resume"),
    "abort": ("reload", PORT, "--abort"),
    "reload": ("reload", PORT, "--start-timeout", "0.1", "--no-probe", "--", "true"),
    "detach": ("detach", PORT),
}
PINS = ("program", *layout.SHAPES, "generation_1", "program_next", "../journal")
VERBS_EACH = int(os.environ.get("FUZZ_VERBS_EACH", "13"))
BESIDE = [("next_1", "a folder"), (f"next_{os.getpid()}", "a hash"), ("odd", "a folder"), ("../odd", "a program")]
ODD_NAMES = ("generation_x", "generation_7", "generation_99999999999999999999", "generation_01", "working", "odd")


def array(size: int, elements: int, value: bytes = b"") -> bpf.Map:
    made = bpf.Map.create(bpf.MapType.ARRAY, "fuzz", value_size=size, max_entries=elements)
    made.update(0, value.ljust(size, b"\xff"))
    return made


THINGS: dict[str, Callable[[], bpf.Handle] | None] = {
    "nothing": None,
    "a folder": None,
    "a program": lambda: bytecode.load(bytecode.Verdict.PASS),
    "a hash": lambda: bpf.Map.create(bpf.MapType.HASH, "fuzz", key_size=8, value_size=8, max_entries=4),
    "a small array": lambda: array(4, 1),
    "a journal of nonsense": lambda: array(65536, 1, (7).to_bytes(4, "little") + b'{"a":1}'),
    "a sockarray": lambda: bpf.Map.create(bpf.MapType.REUSEPORT_SOCKARRAY, "fuzz", value_size=8, max_entries=3),
}


class Stage:
    """A group with our program, whose pins are made anew again and again without compiling anything."""

    def __init__(self, stack: ExitStack, pins: Path) -> None:
        self.pins = pins
        self.folder = places.group_folder(pins, GROUP)
        self.listener = stack.enter_context(loopback.listener(PORT))
        self._maps, self._program = policies.load_policy(Policy.HASH, stack)

    def fresh(self) -> None:
        """Attached, with an empty generation 1."""
        (Place(self.pins) / bpffs.HOME).remove()
        self.folder.make()
        opened = State.create(self.folder, self._maps, self._program)  # closed by the stage
        opened.generations.create(1)
        opened.choice.switch(1)
        sockets.attach_program(self.listener.fileno(), self._program)

    def put(self, pin: str, thing: str) -> None:
        put(at(self.folder / "state", pin), thing)

    def serves(self) -> None:
        with socket.create_connection(("127.0.0.1", PORT), timeout=5):
            assert select.select([self.listener], [], [], 5)[0]
            self.listener.accept()[0].close()


@pytest.fixture(scope="module")
def stage(root: None) -> Iterator[Stage]:
    with ExitStack() as stack:
        stack.enter_context(netns.throw_away())
        yield Stage(stack, stack.enter_context(restart.own_bpffs()))


def answer(pins: Path, *words: object) -> tuple[int, str]:
    """Exit code of a command line, and everything that it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE_S)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 99
        try:
            code = run(["--bpffs", str(pins), *map(str, words)])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with open(reading, errors="replace") as printed:
        text = printed.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def check(pins: Path, *words: object) -> int:
    code, text = answer(pins, *words)
    assert code in CODES, (words, code, text)
    assert "Traceback" not in text, (words, text)
    assert text.strip(), (words, code)
    return code


def at(folder: Place, name: str) -> Place:
    """What is in a folder, or with ../ in the one above."""
    return folder.parent / name.removeprefix("../") if name.startswith("../") else folder / name


def put(place: Place, thing: str) -> None:
    """Have a thing at a place, instead of what is there."""
    place.remove()
    place.parent.make()
    make = THINGS[thing]
    if thing == "a folder":
        place.make()
    elif make is not None:
        with make() as handle:
            bpffs.pin(handle, place)


ALL = [(pin, thing) for pin in PINS for thing in THINGS]


@pytest.mark.parametrize("turn", range(len(THINGS)))
def test_one_broken_pin(stage: Stage, turn: int) -> None:
    """Every pin and every thing; each with some of the verbs, which take turns."""
    for number, (pin, thing) in list(enumerate(ALL))[turn :: len(THINGS)]:
        stage.fresh()
        stage.put(pin, thing)
        for verb in list(VERBS.values())[(turn + number // len(THINGS)) % VERBS_EACH :: VERBS_EACH]:
            check(stage.pins, *verb)
        stage.serves()


@settings(
    deadline=None,
    derandomize=True,
    max_examples=12,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    broken=st.dictionaries(st.sampled_from([*PINS, *ODD_NAMES]), st.sampled_from(sorted(THINGS)), max_size=4),
    beside=st.lists(st.sampled_from(BESIDE), max_size=2),
    verbs=st.lists(st.sampled_from(sorted(VERBS)), min_size=2, max_size=3),
)
def test_a_broken_folder(stage: Stage, broken: dict[str, str], beside: list[tuple[str, str]], verbs: list[str]) -> None:
    stage.fresh()
    for pin, thing in broken.items():
        stage.put(pin, thing)
    for name, thing in beside:
        put(at(stage.folder, name), thing)
    for verb in verbs:
        check(stage.pins, *VERBS[verb])
    stage.serves()


@pytest.mark.parametrize("verb", ["status", "attach", "detach"])
def test_what_is_no_state_at_all(stage: Stage, verb: str) -> None:
    """Folders and pins in the place of the folders above, and names that are no group's."""
    root = Place(stage.pins) / bpffs.HOME
    for place, thing in ((root, "a hash"), (root / netns.key(), "a program"), (stage.folder, "a small array")):
        root.remove()
        put(place, thing)
        check(stage.pins, *VERBS[verb])
    root.remove()
    for name in ("tcp4_999-1-1-1_80", "tcp4_127-0-0-1_08080", "tcp6__80", "odd"):
        put(stage.folder.parent / name / "state" / "program", "a hash")
    check(stage.pins, *VERBS[verb])
    stage.serves()
