"""How a probe's outcome becomes one of three answers. Nothing is tried on the kernel here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from reuseport_tool.errors import MissingCapability, ProgramRejected, ToolError, Unsupported
from reuseport_tool.kernel import capabilities
from reuseport_tool.kernel.loopback import Moved
from reuseport_tool.probes import engine, migration, programs
from reuseport_tool.probes.engine import Probe


def raising(error: Exception) -> Callable[[], str]:
    def run() -> str:
        raise error

    return run


def os_error(number: int) -> OSError:
    return OSError(number, f"bpf: {os.strerror(number)}")


@pytest.mark.parametrize(
    ("error", "available"),
    [
        (Unsupported("not here"), False),
        (ProgramRejected("bad program"), False),
        (os_error(errno.EINVAL), False),
        (os_error(errno.ENOSYS), False),
        (os_error(errno.ENOPROTOOPT), False),
        (ToolError("a connection got lost"), None),
        (os_error(errno.EMFILE), None),
        (os_error(errno.ENOMEM), None),
    ],
    ids=str,
)
def test_an_error_is_no_or_could_not_tell(error: Exception, available: bool | None) -> None:
    feature = Probe(name="x", since="5.14", needs=(), run=raising(error)).answer()
    assert feature.available is available
    assert feature.detail in str(error)


@pytest.mark.parametrize("error", [MissingCapability("not permitted"), os_error(errno.EPERM), os_error(errno.EACCES)])
def test_a_refusal_names_the_missing_capabilities(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_NET_ADMIN"}))
    feature = Probe(name="x", since="5.14", needs=("CAP_BPF", "CAP_NET_ADMIN"), run=raising(error)).answer()
    assert feature.available is None
    assert feature.detail == "not permitted: CAP_BPF missing"


def test_a_refusal_in_spite_of_all_capabilities_says_what_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_BPF"}))
    feature = Probe(name="x", since="5.14", needs=("CAP_BPF",), run=raising(os_error(errno.EPERM))).answer()
    assert feature.available is None
    assert "Operation not permitted" in feature.detail
    assert "missing" not in feature.detail


def test_a_bug_in_a_probe_is_not_an_answer() -> None:
    with pytest.raises(KeyError):
        Probe(name="x", since="5.14", needs=(), run=raising(KeyError("x"))).answer()


@pytest.mark.parametrize(
    ("outcome", "works", "wakes"),
    [
        (Moved(accepted=True, woken=True), True, True),
        (Moved(accepted=True, woken=False), True, False),
        (Moved(accepted=False, woken=False), False, None),
        (Unsupported("no sysctl"), False, None),
        (MissingCapability("no namespace"), None, None),
        (os_error(errno.EMFILE), None, None),
    ],
    ids=str,
)
def test_what_reload_asks(
    monkeypatch: pytest.MonkeyPatch, outcome: Moved | Exception, works: bool | None, wakes: bool | None
) -> None:
    calls = []

    def moved() -> Moved:
        calls.append(1)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(migration, "moved_by_sysctl", moved)
    migration._moved.cache_clear()
    try:
        assert migration.migration_works() is works
        assert migration.migration_wakes() is wakes
        assert len(calls) == 1, "tried once in a process"
    finally:
        migration._moved.cache_clear()


def load_answers(monkeypatch: pytest.MonkeyPatch, migrating: int, wrong: int) -> None:
    """A kernel whose answer to SELECT_OR_MIGRATE and to a wrong attach type is an errno, or 0."""

    class Loaded:
        def close(self) -> None:
            pass

    def load(_verdict: object, attach_type: int = 0) -> Loaded:
        number = migrating if attach_type == 40 else wrong
        if number:
            raise os_error(number)
        return Loaded()

    monkeypatch.setattr(programs.bytecode, "load", load)


@pytest.mark.parametrize(
    ("migrating", "wrong", "expected"),
    [(0, errno.EINVAL, True), (0, 0, False), (errno.EINVAL, errno.EINVAL, False)],
    ids=["5.14", "5.10 ignores the attach type", "refuses both"],
)
def test_the_attach_type_is_known_only_where_a_wrong_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, migrating: int, wrong: int, expected: bool
) -> None:
    load_answers(monkeypatch, migrating, wrong)
    assert programs.loads_migrating_program() is expected


def test_a_refused_load_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    load_answers(monkeypatch, errno.EPERM, errno.EPERM)
    with pytest.raises(PermissionError):
        programs.loads_migrating_program()


def test_a_probe_is_asked_once() -> None:
    tried: list[int] = []

    def run() -> str:
        tried.append(1)
        return "done"

    probe = Probe(name="x", since="5.14", run=run)
    assert engine.ask(probe) is engine.ask(probe)
    assert len(tried) == 1
    assert probe.answer().available
    assert len(tried) == 2, "answer() tries it each time"
