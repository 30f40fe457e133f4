"""What --framing takes."""

from __future__ import annotations

import pytest

from reuseport_tool.autolowat import framing
from reuseport_tool.autolowat.framing import Includes
from reuseport_tool.errors import UsageError


@pytest.mark.parametrize("name", ["rpc", *framing.PRESETS])
def test_a_name_is_a_framing(name: str) -> None:
    chosen = framing.parse(name)
    assert chosen.spec == name
    assert chosen.header <= chosen.max


def test_a_description() -> None:
    chosen = framing.parse("length:offset=4,width=2,order=little,includes=length,header=8,max=9000")
    assert (chosen.offset, chosen.width, chosen.big, chosen.header, chosen.max) == (4, 2, False, 8, 9000)
    assert chosen.includes is Includes.LENGTH
    assert chosen.defines()["FRAMING_ADD"] == 4


def test_network_order_for_rpc() -> None:
    assert not framing.parse("rpc").big
    assert framing.parse("rpc:order=big").big


@pytest.mark.parametrize(
    "spec",
    [
        *("", "grpc", "thrift:max=3"),
        *("rpc:width=4", "rpc:order=middle", "rpc:order", "rpc:max=0"),
        *("length:width=5", "length:offset=14,width=4", "length:offset=-1", "length:offset=0,offset=1"),
        *("length:header=2", "length:includes=tail", "length:order="),
    ],
)
def test_what_makes_no_sense(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        framing.parse(spec)
    assert caught.value.exit_code == 2
