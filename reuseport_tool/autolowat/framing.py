"""How a stream is cut into frames: the text of `--framing`, and what bpf/autolowat/framing.h is compiled with."""

from __future__ import annotations

import enum
from dataclasses import replace

from reuseport_tool.errors import UsageError
from reuseport_tool.record import record

_HEADER_MAX = 16  # sizeof(struct stream.header) in bpf/autolowat/framing.h
_INT_MAX = 2**31 - 1
_HINT = "write rpc, rpc:order=big, length:offset=…,width=…,order=…,includes=…, or one of "


class Kind(enum.IntEnum):
    """FRAMING_KIND of bpf/autolowat/framing.h: how the length is found, and what is refused."""

    LENGTH = 0
    RPC = 1
    POSTGRES = 2
    HTTP2 = 3


class Includes(enum.StrEnum):
    """What a frame's length counts: the bytes after the header, the length field and all after it, or everything."""

    PAYLOAD = "payload"
    LENGTH = "length"
    FRAME = "frame"


@record
class Framing:
    """A frame is its header, with a number of `width` bytes at `offset`, and what that number says.

    Attributes:
        header: bytes that must be there before the frame's length is known; every frame has them.
        max: a longer frame, in bytes, is taken for garbage.
        accepted_only: the other direction has bytes that are not frames.
    """

    spec: str
    kind: Kind
    offset: int
    width: int
    big: bool
    includes: Includes
    header: int
    max: int
    accepted_only: bool = False

    def defines(self) -> dict[str, int]:
        """What bpf/autolowat/framing.h is compiled with."""
        add = {Includes.PAYLOAD: self.header, Includes.LENGTH: self.offset, Includes.FRAME: 0}[self.includes]
        return {
            "FRAMING_KIND": int(self.kind),
            "FRAMING_OFFSET": self.offset,
            "FRAMING_WIDTH": self.width,
            "FRAMING_BIG": int(self.big),
            "FRAMING_ADD": add,
            "FRAMING_HEADER": self.header,
            "FRAMING_MAX": self.max,
        }


_MIB = 1 << 20
_RPC = Framing(
    spec="rpc", kind=Kind.RPC, offset=0, width=4, big=False, includes=Includes.PAYLOAD, header=8, max=16 * _MIB
)
_LENGTH = Framing(
    spec="length", kind=Kind.LENGTH, offset=0, width=4, big=True, includes=Includes.PAYLOAD, header=4, max=64 * _MIB
)
PRESETS = {
    # TConfiguration's maxFrameSize, rounded up
    "thrift": replace(_LENGTH, spec="thrift", max=16 * _MIB),
    # socket.request.max.bytes
    "kafka": replace(_LENGTH, spec="kafka", max=100 * _MIB),
    "dns": replace(_LENGTH, spec="dns", width=2, header=2, max=2 + 0xFFFF),
    # One byte of type, then a length that counts itself. A server answers an SSLRequest with a bare byte.
    "postgres": Framing(
        spec="postgres",
        kind=Kind.POSTGRES,
        offset=1,
        width=4,
        big=True,
        includes=Includes.LENGTH,
        header=5,
        max=1024 * _MIB,
        accepted_only=True,
    ),
    # Larger than what gRPC asks for, smaller than a TLS record looks like.
    "http2": Framing(
        spec="http2", kind=Kind.HTTP2, offset=0, width=3, big=True, includes=Includes.PAYLOAD, header=9, max=_MIB
    ),
}


def parse(spec: str) -> Framing:
    """Read the text of `--framing`.

    Raises:
        UsageError: what is wrong with it, and what would be right.
    """
    name, _, rest = spec.partition(":")
    values = _values(spec, rest)
    if name == "rpc":
        return _rpc(spec, values)
    if name == "length":
        return _length(spec, values)
    if name in PRESETS and not rest:
        return PRESETS[name]
    raise UsageError(f"no such framing: {spec!r}", hint=_HINT + ", ".join(PRESETS))


def _values(spec: str, rest: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, sign, value = part.partition("=")
        if not sign or not value or key in values:
            raise UsageError(f"not a setting: {part!r} in {spec!r}", hint="write name=value, each once, with commas")
        values[key] = value
    return values


def _rpc(spec: str, values: dict[str, str]) -> Framing:
    big = _order(spec, values, "little")
    most = _number(spec, values, "max", _RPC.max, 8, _INT_MAX)
    _no_more(spec, values)
    return replace(_RPC, spec=spec, big=big, max=most)


def _length(spec: str, values: dict[str, str]) -> Framing:
    big = _order(spec, values, "big")
    offset = _number(spec, values, "offset", 0, 0, _HEADER_MAX - 1)
    width = _number(spec, values, "width", 4, 1, 4)
    header = _number(spec, values, "header", offset + width, 1, _HEADER_MAX)
    includes = values.pop("includes", Includes.PAYLOAD)
    if includes not in tuple(Includes):
        raise UsageError(f"a length cannot include {includes!r}", hint="includes=payload, length or frame")
    if header < offset + width:
        raise UsageError(
            f"{spec!r}: a header of {header} bytes has no length at {offset} of {width} bytes",
            hint=f"header is at least offset + width and at most {_HEADER_MAX}",
        )
    most = _number(spec, values, "max", _LENGTH.max, header, _INT_MAX)
    _no_more(spec, values)
    return Framing(
        spec=spec,
        kind=Kind.LENGTH,
        offset=offset,
        width=width,
        big=big,
        includes=Includes(includes),
        header=header,
        max=most,
    )


def _order(spec: str, values: dict[str, str], default: str) -> bool:
    """Whether numbers are in network order."""
    order = values.pop("order", default)
    if order not in ("big", "little"):
        raise UsageError(f"no byte order {order!r} in {spec!r}", hint="order=big or order=little")
    return order == "big"


def _number(spec: str, values: dict[str, str], key: str, default: int, least: int, most: int) -> int:
    text = values.pop(key, str(default))
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise UsageError(
            f"{key}={text} in {spec!r} is not a number from {least} to {most}",
            hint="docs/autolowat.md has an example of each framing",
        )
    return int(text)


def _no_more(spec: str, values: dict[str, str]) -> None:
    if values:
        known = "order, max" if spec.startswith("rpc") else "offset, width, order, includes, header, max"
        raise UsageError(f"unknown setting {next(iter(values))!r} in {spec!r}", hint=f"there are {known}")
