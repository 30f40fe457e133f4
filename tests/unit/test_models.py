"""Endpoints as operators type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool.errors import UsageError
from reuseport_tool.group.state import endpoint_of, folder_name
from reuseport_tool.models import Counters, Endpoint, Protocol, parse_endpoint

GOOD = {
    "80": Endpoint(protocol=Protocol.TCP, address=None, port=80),
    "tcp://80": Endpoint(protocol=Protocol.TCP, address=None, port=80),
    "UDP://53": Endpoint(protocol=Protocol.UDP, address=None, port=53),
    "10.0.0.1:443": Endpoint(protocol=Protocol.TCP, address="10.0.0.1", port=443),
    "*:443": Endpoint(protocol=Protocol.TCP, address=None, port=443),
    "[::]:80": Endpoint(protocol=Protocol.TCP, address="::", port=80),
    "[2001:DB8::1]:80": Endpoint(protocol=Protocol.TCP, address="2001:db8::1", port=80),
    "udp://[fe80::1%eth0]:53": Endpoint(protocol=Protocol.UDP, address="fe80::1", port=53, device="eth0"),
    "10.0.0.1%eth0.7:80": Endpoint(protocol=Protocol.TCP, address="10.0.0.1", port=80, device="eth0.7"),
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
    endpoint = Endpoint(protocol=protocol, address=address, port=port)
    assert parse_endpoint(str(endpoint)) == endpoint
    assert endpoint_of(folder_name(endpoint)) == endpoint
    assert not {".", ":", "/"} & set(folder_name(endpoint))


def test_what_covers_what() -> None:
    group = Endpoint(protocol=Protocol.TCP, address="10.0.0.1", port=80)
    assert Endpoint(protocol=Protocol.TCP, address=None, port=80).covers(group)
    assert group.covers(group)
    assert not Endpoint(protocol=Protocol.UDP, address=None, port=80).covers(group)
    assert not Endpoint(protocol=Protocol.TCP, address=None, port=81).covers(group)
    assert not Endpoint(protocol=Protocol.TCP, address="10.0.0.2", port=80).covers(group)


def test_counters_are_subtracted_field_by_field() -> None:
    assert Counters(
        selected=5, fallback=4, migrated_established=3, migrated_syn_recv=2, migrated_new_syn_recv=1, dropped=0
    ).since(
        Counters(
            selected=1, fallback=1, migrated_established=1, migrated_syn_recv=1, migrated_new_syn_recv=1, dropped=0
        )
    ) == Counters(
        selected=4, fallback=3, migrated_established=2, migrated_syn_recv=1, migrated_new_syn_recv=0, dropped=0
    )
