"""Endpoints as operators type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool.errors import UsageError
from reuseport_tool.group.state import endpoint_of, folder_name
from reuseport_tool.models import Counters, Endpoint, Protocol, parse_endpoint

GOOD = {
    "80": Endpoint(Protocol.TCP, None, 80),
    "tcp://80": Endpoint(Protocol.TCP, None, 80),
    "UDP://53": Endpoint(Protocol.UDP, None, 53),
    "10.0.0.1:443": Endpoint(Protocol.TCP, "10.0.0.1", 443),
    "*:443": Endpoint(Protocol.TCP, None, 443),
    "[::]:80": Endpoint(Protocol.TCP, "::", 80),
    "[2001:DB8::1]:80": Endpoint(Protocol.TCP, "2001:db8::1", 80),
    "udp://[fe80::1%eth0]:53": Endpoint(Protocol.UDP, "fe80::1", 53, "eth0"),
    "10.0.0.1%eth0.7:80": Endpoint(Protocol.TCP, "10.0.0.1", 80, "eth0.7"),
}


@pytest.mark.parametrize("text", GOOD)
def test_good_endpoints(text: str) -> None:
    assert parse_endpoint(text) == GOOD[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "-1",
        "8e1",
        "٨",
        "1.2.3:80",
        "[1.2.3.4]:80",
        "::1:80",
        "[::1]",
        "[::1]:",
        "ftp://80",
        "a:80",
        ":80",
    ],
)
def test_bad_endpoints_say_what_is_right(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)
    assert caught.value.hint


@given(st.text())
def test_any_text_is_an_endpoint_or_a_usage_error(text: str) -> None:
    try:
        parsed = parse_endpoint(text)
    except UsageError:
        return
    assert 1 <= parsed.port <= 65535


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(st.sampled_from(Protocol), ADDRESSES, st.integers(1, 65535))
def test_endpoints_survive_text_and_folder_name(protocol: Protocol, address: str, port: int) -> None:
    endpoint = Endpoint(protocol, address, port)
    assert parse_endpoint(str(endpoint)) == endpoint
    assert endpoint_of(folder_name(endpoint)) == endpoint
    assert not {".", ":", "/"} & set(folder_name(endpoint))


def test_what_covers_what() -> None:
    group = Endpoint(Protocol.TCP, "10.0.0.1", 80)
    assert Endpoint(Protocol.TCP, None, 80).covers(group)
    assert group.covers(group)
    assert not Endpoint(Protocol.UDP, None, 80).covers(group)
    assert not Endpoint(Protocol.TCP, None, 81).covers(group)
    assert not Endpoint(Protocol.TCP, "10.0.0.2", 80).covers(group)


def test_counters_are_subtracted_field_by_field() -> None:
    assert Counters(5, 4, 3, 2, 1, 0).since(Counters(1, 1, 1, 1, 1, 0)) == Counters(4, 3, 2, 1, 0, 0)
