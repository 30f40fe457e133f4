"""The cases of `check udp-reload`: a kind of server, how it is replaced, and what must come of it."""

from __future__ import annotations

from reuseport_tool.record import record


@record
class Story:
    """One row: a kind of server, how it is reloaded, and what must come of it.

    Attributes:
        server: options of udp_server.py, for both servers; `new` for the new one alone.
        options: of `reload`; None reloads plainly.
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
    options: tuple[str, ...] | None = None
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
_PATIENT = ("--health-timeout", "60s", "--start-timeout", "60s", "--stop-timeout", "60s")
_NONE = ("--flows", "none", *_PATIENT)
_ADDRESS = ("--flows", "address", *_PATIENT)
_QUIC = ("--flows", "quic", *_PATIENT)
_LATE = ("--delay", "0.3")
_SESSION = ("--session",)
STORIES = (
    Story(
        name="map too small",
        way="address",
        expected="reported",
        options=(*_ADDRESS, "--drain-timeout", "4s"),
        entries=1024,
        flood=True,
    ),
    Story(name="fast answers", way="none", expected="survive", options=_NONE),
    Story(name="answers after 300 ms", way="plain", expected="lose", server=_LATE),
    Story(
        name="answers after 300 ms", way="none", expected="survive", options=(*_NONE, "--settle", "2s"), server=_LATE
    ),
    Story(name="flows with state", way="plain", expected="lose", server=_SESSION),
    Story(name="flows with state", way="none", expected="lose", options=_NONE, server=_SESSION),
    Story(
        name="flows with state",
        way="address",
        expected="survive",
        options=(*_ADDRESS, "--flow-timeout", "2s"),
        server=_SESSION,
        entries=4096,
        ends=True,
    ),
    Story(
        name="new server is deaf",
        way="none",
        expected="rolled back",
        options=("--flows", "none", "--health-timeout", "1s"),
        new=("--deaf",),
    ),
    Story(name="QUIC", way="plain", expected="lose", quic=True),
    Story(
        name="QUIC, addresses change",
        way="address",
        expected="lose",
        options=(*_ADDRESS, "--flow-timeout", "2s"),
        entries=4096,
        ends=True,
        quic=True,
    ),
    Story(
        name="QUIC, addresses change",
        way="quic",
        expected="survive",
        options=(*_QUIC, "--flow-timeout", "2s"),
        entries=4096,
        ends=True,
        quic=True,
    ),
    Story(
        name="QUIC, one worker, IDs change too",
        way="quic",
        expected="survive",
        options=(*_QUIC, "--flow-timeout", "2s"),
        server=("1",),
        entries=4096,
        ends=True,
        quic=True,
        renewed=True,
    ),
    Story(name="foreign program", way="none", expected="refused", options=_NONE, foreign=True),
    Story(name="unsaid what is kept", way="-", expected="refused", options=()),
    Story(name="a connected socket", way="none", expected="survive", options=_NONE, wildcard=True),
)
