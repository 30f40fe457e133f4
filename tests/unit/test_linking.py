"""Code is linked by replacing the numbers that stand for maps and kernel functions, and nothing else."""

from __future__ import annotations

from pathlib import Path

from reuseport_tool.kernel import abi, program

MAP, KFUNC = 0x40000000, 0x50000001
HALF = bytes(8)


def load_64(source: int, number: int) -> bytes:
    return bytes([0x18, source << 4 | 1, 0, 0]) + number.to_bytes(4, "little") + HALF


def call(source: int, number: int) -> bytes:
    return bytes([0x85, source << 4, 0, 0]) + number.to_bytes(4, "little")


def test_the_numbers_of_maps_become_descriptors() -> None:
    code = load_64(1, MAP) + load_64(0, MAP) + load_64(1, MAP + 1)
    assert program.link(code, {MAP: 7}) == load_64(1, 7) + load_64(0, MAP) + load_64(1, MAP + 1)


def test_calls_of_kernel_functions_are_marked() -> None:
    code = call(0, KFUNC) + call(0, 1) + call(1, KFUNC)
    assert program.link(code, {KFUNC: 4711}) == call(2, 4711) + call(0, 1) + call(1, KFUNC)


def test_every_constant_has_a_number_of_its_own() -> None:
    source = program.Source(path=Path("x.c"), defines={"A": 1}, maps=("M", "N"), kfuncs=("K", "L"))
    numbers = source.numbers()
    assert (numbers["M"], numbers["L"]) == (MAP, KFUNC)
    assert len({*numbers.values()}) == 4
    assert source.constants() == abi.SIZES | {"A": 1, **numbers}
