"""What happened between two looks at a group, in words: pure functions of the records of `status`."""

from __future__ import annotations

from collections.abc import Iterator

from reuseport_tool.models import Counters, Group, Listener

_NOTHING = Counters()


def between(before: Group | None, after: Group | None) -> tuple[str, ...]:
    """The events, in the order in which a reload has them. None is a group that is not there."""
    if before is None or after is None:
        return ("the group is there",) if after else ("the group is gone",) if before else ()
    looks = (_program, _reload, _canary, _listeners, _switch, _counted, _ended, _old_side)
    return tuple(event for look in looks for event in look(before, after))


def _program(before: Group, after: Group) -> Iterator[str]:
    old, new = before.program, after.program
    if (old.id if old else None) == (new.id if new else None):
        return
    if new is None:
        yield "the program is detached"
    else:
        yield f"the program is {new.policy or new.name} (id {new.id})" + ("" if new.policy else ", not this tool's")


def _listeners(before: Group, after: Group) -> Iterator[str]:
    known = {entry.cookie: entry for entry in before.listeners}
    present = {entry.cookie: entry for entry in after.listeners}
    for cookie, entry in present.items():
        if cookie not in known:
            yield f"{_named(entry)} listens"
        elif known[cookie].flag != entry.flag:
            yield f"{_named(entry)} is {entry.flag}, was {known[cookie].flag}"
    for cookie, entry in known.items():
        if cookie not in present:
            waiting = f", {entry.accept_queue} waited in its queue before" if entry.accept_queue else ""
            yield f"{_named(entry)} closed{waiting}"


def _named(entry: Listener) -> str:
    return f"listener {entry.cookie}" + (f" of {entry.command} (process {entry.pid})" if entry.pid else "")


def _outcome(before: Group, after: Group) -> str:
    last = after.last_reload
    if last is None or last == before.last_reload:
        return ""
    lost = "losses not measured" if last.lost is None else f"{last.lost} lost"
    return f": {last.result}, {lost}"


def _reload(before: Group, after: Group) -> Iterator[str]:
    old, new = before.reload, after.reload
    if new is None:
        return
    if old is None or old.begun_at != new.begun_at:
        yield f"a reload began (process {new.pid})"
    if old is not None and old.running and not new.running:
        yield f"the reload was killed in the step {new.step}"
    elif old is None or old.step != new.step:
        yield f"the reload is in the step {new.step}"


def _ended(before: Group, after: Group) -> Iterator[str]:
    if before.reload is not None and after.reload is None:
        yield f"the reload has ended{_outcome(before, after)}"


def _canary(before: Group, after: Group) -> Iterator[str]:
    if before.canary == after.canary:
        return
    if after.canary is not None:
        yield f"generation {after.canary.generation} gets {after.canary.percent:g} % of the new connections"
    elif before.canary is not None and after.working_generation != before.canary.generation:
        yield f"generation {before.canary.generation} gets no connections any more"


def _switch(before: Group, after: Group) -> Iterator[str]:
    if after.working_generation is not None and after.working_generation != before.working_generation:
        yield f"new connections go to generation {after.working_generation}"


def _old_side(before: Group, after: Group) -> Iterator[str]:
    earlier = before.old_side.connections if before.old_side else 0
    if after.old_side is None or bool(earlier) == bool(after.old_side.connections):
        return
    if earlier:
        yield "the old side holds no connections any more"
    else:
        yield f"the old side holds {after.old_side.connections} accepted connections"


def _counted(before: Group, after: Group) -> Iterator[str]:
    if after.counters is None:
        return
    # A program that was replaced counts from 0 again: then all that it counted is new.
    earlier = before.counters if before.counters and _same_program(before, after) else _NOTHING
    growth = after.counters.since(earlier)
    moved = growth.migrated_established + growth.migrated_syn_recv + growth.migrated_new_syn_recv
    if moved:
        yield f"{moved} connections migrated"
    if growth.dropped:
        yield f"{growth.dropped} connections refused by the policy"


def _same_program(before: Group, after: Group) -> bool:
    return before.program is not None and after.program is not None and before.program.id == after.program.id
