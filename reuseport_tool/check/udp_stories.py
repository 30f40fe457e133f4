"""The cases of `check udp-reload`: a kind of server, how it is replaced, and what must come of it."""

from __future__ import annotations

from typing import Any

from reuseport_tool.record import record


@record
class Story:
    """One row: a kind of server, how it is reloaded, and what must come of it.

    Attributes:
        server: options of udp_server.py, for both servers; `new` for the new one alone.
        options: of `reload`; None reloads plainly. A number is a time in seconds, of which a slow machine gets more.
        expected: `survive`, `lose`, or what the tool must say by its exit code: `reported` (1), `refused` (2, 7),
            `rolled back` (8). In the two last nothing may be lost.
        entries: of the map of flows, where the group is attached before.
        ends: the clients stop soon after the switch, so that their flows end.
        quic: the servers are quic_server.py, whose only option is the number of workers, and the clients quic_load.py;
            where it `ends`, every client's address changes at the switch.
        renewed: their connection IDs change together with their addresses.
    """

    name: str
    way: str
    expected: str
    options: tuple[str | float, ...] | None = None
    server: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    entries: int | None = None
    foreign: bool = False
    wildcard: bool = False
    flood: bool = False
    ends: bool = False
    quic: bool = False
    renewed: bool = False


# A healthy server is given as long as it needs, however busy the machine is.
_PATIENT = ("--health-timeout", 60.0, "--start-timeout", 60.0, "--drain-timeout", 60.0, "--stop-timeout", 60.0)
_NONE = ("--flows", "none", *_PATIENT)
_LATE = ("--delay", "0.3")
_SESSION = ("--session",)


def _kept(name: str, way: str, expected: str, **more: Any) -> Story:
    """The group is attached before and keeps flows, which end soon after the switch."""
    options = ("--flows", way, *_PATIENT, "--flow-timeout", 2.0)
    return Story(name=name, way=way, expected=expected, options=options, entries=4096, ends=True, **more)


STORIES = (
    Story(
        name="map too small",
        way="address",
        expected="reported",
        options=("--flows", "address", *_PATIENT, "--flow-timeout", 30.0, "--drain-timeout", 4.0),
        entries=1024,
        flood=True,
    ),
    Story(name="fast answers", way="none", expected="survive", options=_NONE),
    Story(name="answers after 300 ms", way="plain", expected="lose", server=_LATE),
    Story(name="answers after 300 ms", way="none", expected="survive", options=(*_NONE, "--settle", 2.0), server=_LATE),
    Story(name="flows with state", way="plain", expected="lose", server=_SESSION),
    Story(name="flows with state", way="none", expected="lose", options=_NONE, server=_SESSION),
    _kept("flows with state", "address", "survive", server=_SESSION),
    Story(
        name="new server is deaf",
        way="none",
        expected="rolled back",
        options=("--flows", "none", "--health-timeout", 1.0),
        new=("--deaf",),
    ),
    Story(name="QUIC", way="plain", expected="lose", quic=True),
    _kept("QUIC, addresses change", "address", "lose", quic=True),
    _kept("QUIC, addresses change", "quic", "survive", quic=True),
    _kept("QUIC, one worker, IDs change too", "quic", "survive", server=("1",), quic=True, renewed=True),
    Story(name="foreign program", way="none", expected="refused", options=_NONE, foreign=True),
    Story(name="unsaid what is kept", way="-", expected="refused", options=()),
    Story(name="a connected socket", way="none", expected="survive", options=_NONE, wildcard=True),
)
