"""Endpoints as operators type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport_tool.errors import UsageError
from reuseport_tool.group.places import endpoint_of, folder_name
from reuseport_tool.models import Counters, Endpoint, Protocol, parse_endpoint
from reuseport_tool.models.endpoint import canonical_address

GOOD = {
    "80": Endpoint(protocol=Protocol.TCP, address=None, port=80),
    "tcp://80": Endpoint(protocol=Protocol.TCP, address=None, port=80),
    "UDP://53": Endpoint(protocol=Protocol.UDP, address=None, port=53),
    "10.0.0.1:443": Endpoint(protocol=Protocol.TCP, address="10.0.0.1", port=443),
    "*:443": Endpoint(protocol=Protocol.TCP, address=None, port=443),
    ":443": Endpoint(protocol=Protocol.TCP, address=None, port=443),
    "udp://:53": Endpoint(protocol=Protocol.UDP, address=None, port=53),
    "*%eth0:443": Endpoint(protocol=Protocol.TCP, address=None, port=443, device="eth0"),
    "[::]:80": Endpoint(protocol=Protocol.TCP, address="::", port=80),
    ":::80": Endpoint(protocol=Protocol.TCP, address="::", port=80),
    "[::0]:80": Endpoint(protocol=Protocol.TCP, address="::", port=80),
    "[::]:80,v6only": Endpoint(protocol=Protocol.TCP, address="::", port=80, v6only=True),
    "[::%eth0]:80,v6only": Endpoint(protocol=Protocol.TCP, address="::", port=80, device="eth0", v6only=True),
    "[::ffff:127.0.0.1]:80": Endpoint(protocol=Protocol.TCP, address="::ffff:127.0.0.1", port=80),
    "[::FFFF:7f00:1]:80": Endpoint(protocol=Protocol.TCP, address="::ffff:127.0.0.1", port=80),
    "[0:0:0:0:0:ffff:127.0.0.1]:80": Endpoint(protocol=Protocol.TCP, address="::ffff:127.0.0.1", port=80),
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
        "[]:80",
        "::::80",
        "80,v6only",
        "*:80,v6only",
        "10.0.0.1:80,v6only",
        "[::1]:80,v6only",
        "[::]:80,dual",
    ],
)
def test_bad_endpoints_say_what_is_right(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)
    assert caught.value.hint


MAPPED = st.ip_addresses(v=4).map("::ffff:{}".format)
ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str), MAPPED, st.just("::"))


@given(st.sampled_from(Protocol), ADDRESSES, st.integers(1, 65535), st.sampled_from([None, "eth0"]), st.booleans())
def test_endpoints_survive_text_and_folder_name(
    protocol: Protocol, address: str, port: int, device: str | None, v6only: bool
) -> None:
    endpoint = Endpoint(
        protocol=protocol,
        address=canonical_address(address),
        port=port,
        device=device,
        v6only=v6only and address == "::",
    )
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


ANY, MAPPED_GROUP = parse_endpoint("8080"), parse_endpoint("[::ffff:127.0.0.1]:8080")
PLAIN, DUAL, ONLY = (parse_endpoint(text) for text in ("127.0.0.1:8080", "[::]:8080", "[::]:8080,v6only"))
BOUND = parse_endpoint("127.0.0.1%eth0:8080")


@pytest.mark.parametrize(
    ("typed", "groups", "meant"),
    [
        (PLAIN, [MAPPED_GROUP], [MAPPED_GROUP]),
        (MAPPED_GROUP, [PLAIN], [PLAIN]),
        (PLAIN, [MAPPED_GROUP, PLAIN], [PLAIN]),
        (DUAL, [ONLY], [ONLY]),
        (DUAL, [ONLY, DUAL], [DUAL]),
        (ONLY, [ONLY, DUAL], [ONLY]),
        (ONLY, [DUAL], []),
        (PLAIN, [BOUND], [BOUND]),
        (PLAIN, [BOUND, PLAIN], [PLAIN]),
        (BOUND, [PLAIN], []),
        (ANY, [BOUND, PLAIN, DUAL, ONLY, MAPPED_GROUP], [BOUND, PLAIN, DUAL, ONLY, MAPPED_GROUP]),
    ],
)
def test_the_name_of_a_group_means_that_group_and_other_spellings_find_theirs(
    typed: Endpoint, groups: list[Endpoint], meant: list[Endpoint]
) -> None:
    assert typed.among(groups) == meant


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
