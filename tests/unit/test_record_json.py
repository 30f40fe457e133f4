"""Records as JSON and back: the same record, or a ValueError, never something in between."""

from __future__ import annotations

import enum
import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool import record_json
from reuseport_tool.record import record


class Colour(enum.StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    name: str
    share: float


@record
class Outer:
    number: int
    flag: bool
    colour: Colour
    signal: signal.Signals
    path: Path | None
    inner: Inner | None
    many: tuple[Inner, ...]
    pair: tuple[int, str]


OUTER = Outer(
    number=1,
    flag=True,
    colour=Colour.RED,
    signal=signal.SIGQUIT,
    path=Path("/x"),
    inner=Inner("ü", 0.5),
    many=(Inner("a", 1.0),),
    pair=(1, "b"),
)


@given(
    st.builds(
        Outer,
        number=st.integers(),
        flag=st.booleans(),
        colour=st.just(Colour.RED),
        signal=st.sampled_from(signal.Signals),
        path=st.one_of(st.none(), st.just(Path("/a b"))),
        inner=st.one_of(st.none(), st.builds(Inner, name=st.text(), share=st.floats(allow_nan=False))),
        many=st.lists(st.builds(Inner, name=st.text(), share=st.floats(0, 1)), max_size=3).map(tuple),
        pair=st.tuples(st.integers(), st.text()),
    )
)
def test_the_same_record_comes_back(record: Outer) -> None:
    assert record_json.decode(Outer, record_json.encode(record)) == record


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    text = record_json.encode(replace(OUTER, inner=Inner("a", 1)))
    assert record_json.decode(Outer, text).inner == Inner("a", 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"number": "1"},
        {"number": True},
        {"flag": 1},
        {"colour": "blue"},
        {"signal": 99},
        {"path": 5},
        {"inner": {"name": "a"}},
        {"inner": {"name": "a", "share": 1.0, "more": 1}},
        {"many": {}},
        {"many": [None]},
        {"pair": [1]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_is_a_value_error(change: dict[str, object]) -> None:
    text = json.dumps({**json.loads(record_json.encode(OUTER)), **change}).encode()
    with pytest.raises(ValueError, match=r"."):
        record_json.decode(Outer, text)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"null", b"{", b"[" * 100_000], ids=range(6))
def test_what_is_no_record_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_json.decode(Outer, text)
