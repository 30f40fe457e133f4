"""A generation that was rolled back leaves no flow behind: the next one takes its number, and none of its clients."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reuseport_tool.group.choice import SHARES
from reuseport_tool.kernel import quic_packets as quic
from reuseport_tool.kernel import sockets
from reuseport_tool.models import FlowMode
from tests.kernel.udp.test_quic import Lab, connection_id, lab  # noqa: F401
from tests.kernel.udp.test_steered import opened

pytestmark = pytest.mark.needs("TCP iterator", "detach from a group")


@pytest.mark.parametrize(
    ("mode", "number", "following_number"), [(FlowMode.ADDRESS, 2, 2), (FlowMode.QUIC, 2, 2), (FlowMode.QUIC, 20, 4)]
)
def test_its_flows_are_not_the_next_one_s(
    lab: Callable[[str], Lab],  # noqa: F811
    mode: FlowMode,
    number: int,
    following_number: int,
) -> None:
    """Also if the number is far above the working one, or has the place of an earlier one."""
    at = lab("ipv4")
    old = at.join()
    at.tool.ok("attach", at.endpoint, "--flows", mode)
    tried = at.join()
    at.tool.ok("map", "add", at.endpoint, "--generation", number, "--cookie", sockets.cookie(tried.fileno()))
    with opened(at) as state:
        state.choice.share(number, SHARES)
        clients = [at.connect() for _ in range(4)]
        state.choice.share(number, 0)
        assert {at.reach(client, quic.short(chosen)) for client, _, chosen in clients} == {tried}
        state.choice.end_canary()
        state.generations.release(sockets.cookie(tried.fileno()))
        state.generations.remove(number)
    at.members.remove(tried)
    tried.close()
    following = at.join()
    at.tool.ok(
        "map", "add", at.endpoint, "--generation", following_number, "--cookie", sockets.cookie(following.fileno())
    )
    for client, _, chosen in clients[:2]:
        assert at.reach(client, quic.short(chosen)) is old
    for _, _, chosen in clients[2:]:
        assert at.reach(at.client(), quic.short(chosen)) is old
    assert at.table()["counters"]["gone"] == 0


def test_the_length_of_its_ids_is_forgotten(lab: Callable[[str], Lab]) -> None:  # noqa: F811
    """What the next server has not shown yet is unknown, and teaches no wrong ID."""
    at = lab("ipv4")
    at.join()
    at.attach()
    tried = at.join()
    at.tool.ok("map", "add", at.endpoint, "--generation", 2, "--cookie", sockets.cookie(tried.fileno()))
    with opened(at) as state:
        state.choice.share(2, SHARES)
        at.connect(20)
        state.choice.end_canary()
        state.generations.release(sockets.cookie(tried.fileno()))
        state.generations.remove(2)
        at.members.remove(tried)
        at.switch([at.join()])
        assert state.choice.working == 2
    client = at.client()
    at.reach(client, quic.initial(connection_id(8)))
    at.reach(client, quic.short(connection_id(8)))
    assert at.table()["connection_ids"] == 0
