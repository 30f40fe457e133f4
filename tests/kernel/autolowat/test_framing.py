"""The parser that both engines share, run by the kernel on packets of our own, against the same in Python."""

from __future__ import annotations

import ctypes
import functools
import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ctypes import c_uint8 as u8
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reuseport_tool.autolowat import framing
from reuseport_tool.autolowat.framing import Framing, Includes, Kind
from reuseport_tool.kernel import bpf, libc
from reuseport_tool.kernel.program import AttachType, ProgramType, Source, load

SPECS = [
    "rpc",
    "rpc:order=big",
    "thrift",
    "dns",
    "postgres",
    "http2",
    "length:offset=3,width=2,order=little,includes=frame,header=8",
    "length:offset=1,width=3,order=big,includes=length",
]
_PROG_TEST_RUN = 10
_RESULT = struct.Struct("=IIIIIIIII16sI")
NO_DOUBT, LENGTH, TOO_MANY = 0, 1, 2


class _TestRun(ctypes.Structure):
    """union bpf_attr of BPF_PROG_TEST_RUN; the kernel writes to it."""

    _fields_ = [
        ("prog_fd", u32),
        ("retval", u32),
        ("data_size_in", u32),
        ("data_size_out", u32),
        ("data_in", u64),
        ("data_out", u64),
        ("repeat", u32),
        ("duration", u32),
        ("_rest", u8 * 40),
    ]


@dataclass(kw_only=True)
class State:
    start: int
    end: int
    next: int
    furthest: int
    known: int
    payload: int
    payload_end: int
    jumped: int
    frames: int
    header: bytes
    doubt: int


class Parser:
    def __init__(self, spec: str, stack: ExitStack) -> None:
        self.framing = framing.parse(spec)
        self._result = stack.enter_context(bpf.Map.create(bpf.MapType.ARRAY, "result", value_size=_RESULT.size))
        path = Path(__file__).with_name("framing_probe.c")
        source = Source(path=path, defines=self.framing.defines(), maps=("RESULT_FD",), is_ours=False)
        where = (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS)
        self._program = stack.enter_context(load(source, path.stem, *where, {"RESULT_FD": self._result.fd}))

    def begin(self, seq: int) -> None:
        self._result.update(0, _RESULT.pack(seq, seq, seq, seq, 0, seq, seq, 0, 0, b"", 0))

    def feed(self, seq: int, payload: bytes) -> State:
        # An Ethernet header of no known type, which the kernel takes off.
        data = bytes(12) + b"\xff\xff" + struct.pack("=I", seq) + payload
        held = ctypes.create_string_buffer(data, len(data))
        libc.bpf(
            _PROG_TEST_RUN,
            _TestRun(prog_fd=self._program.fd, data_size_in=len(data), data_in=ctypes.addressof(held)),
            "test run",
        )
        values = _RESULT.unpack(self._result.lookup(0))
        return State(**dict(zip(State.__dataclass_fields__, values, strict=True)))


class _Loaded(dict[str, Parser]):
    """Parsers by their framing, compiled when they are asked for."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, spec: str) -> Parser:
        return self.setdefault(spec, Parser(spec, self._stack))


# Emulated, a parser takes ten seconds to compile and to verify.
EACH = [pytest.param(spec, marks=[pytest.mark.vm] if spec in ("rpc", "http2") else []) for spec in SPECS]


@pytest.fixture(scope="module")
def parsers() -> Iterator[dict[str, Parser]]:
    with ExitStack() as stack:
        yield _Loaded(stack)


def length_of(chosen: Framing, header: bytes) -> int | None:
    """The frame's length by its header, None for garbage: what docs/autolowat.md says."""
    order = "big" if chosen.big else "little"
    value = int.from_bytes(header[chosen.offset : chosen.offset + chosen.width], order)  # type: ignore[arg-type]
    if chosen.kind is Kind.RPC:
        total = 8 + sum(int.from_bytes(header[at : at + 4], order) for at in (0, 4))  # type: ignore[arg-type]
    elif chosen.kind is Kind.HTTP2 and header[:4] == b"PRI ":
        total = 24
    elif chosen.kind is Kind.HTTP2 and (header[3] > 16 or header[5] >= 128):
        return None
    elif chosen.kind is Kind.POSTGRES and header[0] == 0:
        total = int.from_bytes(header[:4], "big")
    elif chosen.kind is Kind.POSTGRES and not header[:1].isalpha():
        return None
    else:
        total = (
            value
            + {Includes.PAYLOAD: chosen.header, Includes.LENGTH: chosen.offset, Includes.FRAME: 0}[chosen.includes]
        )
    return total if chosen.header <= total <= chosen.max else None


def frame(chosen: Framing, payload: int, chance: random.Random) -> bytes:
    """A frame with so many bytes after its header."""
    order = "big" if chosen.big else "little"
    if chosen.kind is Kind.RPC:
        first = chance.randint(0, payload)
        head = first.to_bytes(4, order) + (payload - first).to_bytes(4, order)  # type: ignore[arg-type]
    else:
        total = payload + chosen.header
        value = (
            total
            - {Includes.PAYLOAD: chosen.header, Includes.LENGTH: chosen.offset, Includes.FRAME: 0}[chosen.includes]
        )
        before = b"Q" * chosen.offset
        after = bytes(chosen.header - chosen.offset - chosen.width)
        head = before + value.to_bytes(chosen.width, order) + after  # type: ignore[arg-type]
    return head + chance.randbytes(payload)


@functools.cache
def sizes() -> st.SearchStrategy[list[int]]:
    return st.lists(st.one_of(st.integers(0, 30), st.integers(0, 700)), min_size=1, max_size=30)


@pytest.mark.parametrize("spec", EACH)
def test_it_knows_every_boundary(parsers: dict[str, Parser], spec: str, root: None) -> None:
    """In any segments, also repeated and overlapping ones, and where sequence numbers wrap."""
    parser = parsers[spec]

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1) | st.just(2**32 - 100), sizes(), st.integers(0, 2**32), st.integers(1, 60))
    def property_(isn: int, payloads: list[int], seed: int, most: int) -> None:
        chance = random.Random(seed)
        frames = [frame(parser.framing, payload, chance) for payload in payloads]
        stream, ends, total = b"".join(frames), [], 0
        for piece in frames:
            total += len(piece)
            ends.append(total)
        parser.begin(isn)
        at = 0
        while at < len(stream):
            size = chance.randint(1, most * 10)
            back = chance.randint(0, min(at, 40)) if chance.random() < 0.3 else 0
            state = parser.feed((isn + at - back) % 2**32, stream[at - back : at + size])
            at = min(at + size, len(stream))
            compare(state, isn, at, ends, stream, parser.framing.header)

    property_()


def compare(state: State, isn: int, at: int, ends: list[int], stream: bytes, header: int) -> None:
    whole = [end for end in ends if end <= at]
    start = whole[-1] if whole else 0
    assert state.doubt == NO_DOUBT
    assert state.next == (isn + at) % 2**32
    assert (state.start, state.frames) == ((isn + start) % 2**32, len(whole))
    assert state.known == int(at - start >= header)
    if state.known:
        assert state.end == (isn + ends[len(whole)]) % 2**32
    else:
        assert state.header[: at - start] == stream[start:at]


@pytest.mark.parametrize("spec", EACH)
def test_it_refuses_what_is_no_frame(parsers: dict[str, Parser], spec: str, root: None) -> None:
    parser = parsers[spec]

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.binary(min_size=parser.framing.header, max_size=parser.framing.header), st.binary(max_size=3))
    def property_(header: bytes, more: bytes) -> None:
        parser.begin(7)
        state = parser.feed(7, header + more[: 0 if parser.framing.header < 3 else None])
        length = length_of(parser.framing, header)
        if length is None:
            assert state.doubt == LENGTH
        elif length > len(header) + len(more):
            assert (state.doubt, state.known, state.end) == (NO_DOUBT, 1, 7 + length)

    property_()


@pytest.mark.vm
def test_out_of_order(parsers: dict[str, Parser], root: None) -> None:
    """A hole in a payload is nothing; one that may hide a header is waited for, or given up."""
    parser, chance = parsers["rpc"], random.Random(1)
    one = frame(parser.framing, 92, chance)
    stream = one * 4
    parser.begin(0)
    parser.feed(0, stream[:20])
    state = parser.feed(50, stream[50:120])
    assert (state.start, state.end, state.next) == (100, 200, 120)
    state = parser.feed(310, stream[310:330])
    assert (state.next, state.furthest) == (120, 330)
    state = parser.feed(120, stream[120:250])
    assert (state.start, state.next, state.furthest) == (200, 250, 330)
    state = parser.feed(250, stream[250:310])
    # The header at 300 was seen; what lies beyond it in the same frame needs no look.
    assert (state.start, state.end, state.next) == (300, 400, 330)


@pytest.mark.vm
def test_too_many_frames_in_a_segment(parsers: dict[str, Parser], root: None) -> None:
    parser = parsers["rpc"]
    parser.begin(0)
    assert parser.feed(0, bytes(8 * 39)).doubt == NO_DOUBT
    parser.begin(0)
    assert parser.feed(0, bytes(8 * 41)).doubt == TOO_MANY


def test_a_postgres_start_up_and_an_http2_preface(parsers: dict[str, Parser], root: None) -> None:
    start_up = struct.pack(">II", 20, 196608) + b"user\0me\0\0\0\0\0"
    parsers["postgres"].begin(0)
    state = parsers["postgres"].feed(0, start_up + b"Q\0\0\0\x0dSELECT 1;")
    assert (state.doubt, state.frames, state.start) == (NO_DOUBT, 2, 34)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    parsers["http2"].begin(0)
    state = parsers["http2"].feed(0, preface + b"\0\0\0\4\0\0\0\0\0")
    assert (state.doubt, state.frames, state.start) == (NO_DOUBT, 2, 33)


@pytest.mark.parametrize("spec", ["http2", "thrift", "rpc", "postgres"])
def test_tls_is_no_frame(parsers: dict[str, Parser], spec: str, root: None) -> None:
    """A TLS ClientHello, which a port with the wrong framing would get."""
    parsers[spec].begin(0)
    assert parsers[spec].feed(0, bytes.fromhex("16030102000100 01fc0303".replace(" ", "")) + bytes(64)).doubt == LENGTH
