"""Whatever is typed, the answer is an exit code of the contract and a message, never a traceback."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport_tool.cli.main import _VERBS, cli, run
from reuseport_tool.errors import UsageError
from reuseport_tool.group import places
from reuseport_tool.kernel import netns
from reuseport_tool.models import Endpoint, Protocol, parse_endpoint

FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ANYTHING = st.text(max_size=12)
ADDRESSES = st.ip_addresses().map(str) | st.text("0123456789abcdef.:*%[]-", max_size=20)
ENDPOINTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "tcp://", "udp://", "TCP://", "sctp://", "://", "//"]),
    st.builds("{}:".format, ADDRESSES) | st.builds("[{}]:".format, ADDRESSES) | st.just(""),
    st.integers(-1, 70_000).map(str) | st.text("0123456789٣²e+ ", max_size=6),
)


@FUZZ
@given(ENDPOINTS | ANYTHING)
def test_endpoints(text: str) -> None:
    try:
        found = parse_endpoint(text)
    except UsageError:
        return
    assert 1 <= found.port <= 65535
    assert parse_endpoint(str(found)) == found


FOLDERS = st.builds(
    "{}{}_{}_{}{}".format,
    st.sampled_from(["tcp", "udp", "sctp", ""]),
    st.sampled_from(["4", "6", "6only", "5", ""]),
    st.text("0123456789abcdef-", max_size=12),
    st.text("0123456789٣", max_size=7),
    st.sampled_from(["", "_", "_eth0", "_a_b", "_a:5", "_\n"]),
)


@FUZZ
@given(FOLDERS | ANYTHING)
def test_names_of_folders(name: str) -> None:
    """A folder is a group's only if the group's folder has this very name."""
    found = places.endpoint_of(name)
    if found is not None:
        assert places.folder_name(found) == name
        assert parse_endpoint(str(found)) == found


@given(
    st.ip_addresses(),
    st.integers(1, 65535),
    st.sampled_from([None, "eth0", "a_b", "eth0.5", "a-b"]),
    st.sampled_from(["tcp", "udp"]),
)
@FUZZ
def test_every_group_finds_its_folder(address: object, port: int, device: str | None, protocol: str) -> None:
    plain = parse_endpoint(
        f"{protocol}://[{address}]:{port}" if ":" in str(address) else f"{protocol}://{address}:{port}"
    )
    group = Endpoint(protocol=plain.protocol, address=plain.address, port=plain.port, device=device)
    assert places.endpoint_of(places.folder_name(group)) == group


def test_an_address_with_dots_and_colons() -> None:
    """As inet_ntop(3) writes a mapped one."""
    group = Endpoint(protocol=Protocol.TCP, address="::ffff:1.2.3.4", port=80)
    assert places.endpoint_of(places.folder_name(group)) == group


def leaves(command: click.Command) -> Iterator[click.Command]:
    """The commands below a group, or itself."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from leaves(below)
    else:
        yield command


def options() -> list[str]:
    return sorted({name for command in (cli, *leaves(cli)) for entry in command.params for name in entry.opts})


WORDS = st.one_of(
    st.sampled_from([*_VERBS, "list", "show", "add", "remove", "switch", "select", "hot-reload", "--", "-", "--="]),
    st.sampled_from(options()),
    ENDPOINTS,
    st.integers().map(str),
    st.floats().map(str),
    ANYTHING,
)


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Every command is parsed, and does nothing. How many were reached."""
    reached = itertools.count()
    monkeypatch.setattr(netns, "enter", lambda _path: None)
    for command in leaves(cli):
        monkeypatch.setattr(command, "callback", lambda *_, **__: next(reached) and None)
    return lambda: next(reached)


@FUZZ
@given(
    verb=st.sampled_from([[], *([name] for name in _VERBS), *(["map", name] for name in ("add", "show", "remove"))]),
    before=st.lists(WORDS, max_size=2),
    after=st.lists(WORDS, max_size=5),
)
def test_command_lines(harmless: Callable[[], int], verb: list[str], before: list[str], after: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*before, *verb, *after])
    assert code in (0, 2, 6)
    assert code == 0 or (out.getvalue() + err.getvalue()).strip(), (code, before, verb, after)


def test_some_command_lines_are_right(harmless: Callable[[], int]) -> None:
    assert run(["reload", "tcp://[::1]:80", "--old-pid", "1", "--stop-signal", "15", "--", "x", "--json"]) == 0
    assert harmless() == 1
