"""The ways into a reload: locks before looks, trials that change nothing, and journals of other runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport_tool.errors import Conflict, NotFound, RolledBack, ToolError
from reuseport_tool.group.journals import Entry, Header
from reuseport_tool.models import Endpoint, Strategy
from reuseport_tool.reload import transaction
from reuseport_tool.reload.plan import Plan, Progress
from reuseport_tool.reload.state import decode, encode
from tests.unit.reload.fake.records import FOREIGN, OLD, WEB, Killed
from tests.unit.reload.fake.world import FakeWorld
from tests.unit.reload.scenes import TLS, go, kill_at, others, scene, served_by, settled, undone

ROOT = Path("/nowhere")


@pytest.fixture
def progress() -> Progress:
    def tell(_: object) -> None:
        pass

    return Progress(begin=tell, end=tell, note=tell, warn=tell)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The world that a run gets: what a test puts here. Locks are noted in `locked`."""
    worlds: list[Any] = []
    locked: list[Endpoint] = []

    @contextlib.contextmanager
    def lock(root: Path, group: Endpoint, wait_s: float = 0.0, **_: Any) -> Iterator[str]:
        locked.append(group)
        yield str(group)

    def world(plan: Plan, folders: object, progress: Progress, stack: contextlib.ExitStack) -> Any:
        made: FakeWorld = worlds[-1]
        made.locked = locked  # type: ignore[attr-defined]
        return made.world()

    monkeypatch.setattr(transaction.live, "world", world)
    monkeypatch.setattr(transaction.bpffs, "find_or_mount", lambda root: ROOT)
    monkeypatch.setattr(transaction.bpffs, "find", lambda root: ROOT)
    monkeypatch.setattr(transaction.places, "locked", lock)
    monkeypatch.setattr(transaction.places, "group_folder", lambda root, group: str(group))
    monkeypatch.setattr(transaction.places, "refuse_interrupted", lambda folder, group: None)
    monkeypatch.setattr(transaction.journals, "is_running", lambda folder: False)
    monkeypatch.setattr(transaction.capabilities, "missing", lambda wanted: [])
    monkeypatch.setattr(transaction.reload_plan, "choose_strategy", lambda plan, warn: Strategy.MIGRATE)
    return worlds


def test_all_groups_are_locked(entered: list[Any], progress: Progress) -> None:
    world = scene(WEB, TLS)
    entered.append(world)
    assert transaction.reload([WEB], Plan(command=("sh",)), None, progress).result == "reloaded"
    assert sorted(map(str, world.locked)) == sorted(map(str, (WEB, TLS)))
    settled(world, 10, (WEB, TLS))


def test_a_refusal_comes_before_everything(entered: list[Any], progress: Progress) -> None:
    world = scene(WEB, TLS)
    entered.append(world)
    with pytest.raises(Conflict):
        transaction.reload([WEB], Plan(command=("sh",), only=True), None, progress)
    assert not others(world)


def test_a_trial_changes_nothing(entered: list[Any], progress: Progress) -> None:
    world = scene(WEB, TLS)
    entered.append(world)
    tried = transaction.dry_run([WEB], Plan(command=("sh",)), None, progress)
    assert (tried.code, [group.endpoint for group in tried.groups]) == (0, sorted(map(str, (WEB, TLS))))
    assert not others(world)
    assert not world.pins
    assert world.journal is None


@pytest.mark.parametrize("why", ["only", "foreign program", "no such program", "running", "capability", "options"])
def test_a_trial_that_would_fail(
    entered: list[Any], progress: Progress, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    world = scene(WEB, TLS)
    entered.append(world)
    how: dict[str, Any] = {"command": ("sh",)}
    if why == "only":
        how["only"] = True
    elif why == "foreign program":
        world.programs[WEB] = FOREIGN
    elif why == "no such program":
        how["command"] = ("/no/such/program",)
    elif why == "running":
        monkeypatch.setattr(transaction.journals, "is_running", lambda folder: True)
    elif why == "capability":
        monkeypatch.setattr(transaction.capabilities, "missing", lambda wanted: ["CAP_BPF"])
    else:
        monkeypatch.setattr(transaction.reload_plan.processes, "command", lambda pid: "server")
        new = world.process(300)
        world.listen(new, WEB, backlog=0)
        world.listen(new, TLS)
        how = {"new_pid": new}
    codes = {"no such program": 2, "capability": 3, "options": 1}
    tried = transaction.dry_run([WEB], Plan(**how), None, progress)
    assert tried.code == codes.get(why, 7)
    assert tried.refusal


def killed(world: FakeWorld, call: int = 60) -> Entry:
    """The journal of a reload that was killed in the middle."""
    world.tap = kill_at(call)
    with contextlib.suppress(Killed, ToolError):
        go(world)
    world.restart_tool()
    state = world.journal
    assert state is not None
    header = Header(sequence=state.sequence, pid=state.pid, begun_at=state.begun_at, step=state.step)
    return Entry(header=header, text=encode(state))


@pytest.mark.parametrize("act", [transaction.resume, transaction.abort])
def test_going_on(entered: list[Any], progress: Progress, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    world = scene()
    entry = killed(world)
    entered.append(world)
    monkeypatch.setattr(transaction.journals, "entries", lambda root, endpoint: [entry])
    world.advance(1.0)
    with contextlib.suppress(RolledBack):
        act(WEB, None, progress)
    if OLD in world.procs:
        undone(world, False)
    else:
        assert served_by(world) == {200}
        assert world.journal is None


def test_journals_that_cannot_be_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (
        Entry(header=Header(sequence=1, pid=1, begun_at=begun, step="start"), text=b"{}") for begun in (1.0, 2.0)
    )
    for entries, kind in (([], NotFound), ([first, second], Conflict), ([first], Conflict)):
        monkeypatch.setattr(transaction.journals, "entries", lambda root, endpoint, found=entries: found)
        with pytest.raises(kind):
            transaction.interrupted(ROOT, WEB)


def test_a_run_that_goes_on_keeps_the_queues_that_were_seen(
    entered: list[Any], progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = scene()
    entry = killed(world, 100)
    (seen,) = decode(entry.text.rstrip(b"\0")).queues
    entered.append(world)
    monkeypatch.setattr(transaction.journals, "entries", lambda root, endpoint: [entry])
    world.advance(60.0)
    report = transaction.resume(WEB, None, progress)
    (old,) = [series for series in report.queues if series.old]
    assert old.looks[: len(seen.looks)] == seen.looks
    assert old.looks[-1].at_s >= 60
    last = report.steps[-1]
    assert last.begin_s >= 60
    assert report.duration_s >= last.begin_s + last.duration_s
