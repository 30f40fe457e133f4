"""What is wrong with the groups that `status` found: pure functions of its records."""

from __future__ import annotations

from collections.abc import Iterator

from reuseport_tool.models import Group, Listener, Problem, ProblemKind

# Queues of unequal length alone are no fault: under load every split of what waits is as likely as any other.
_NEARLY_FULL, _NEARLY_EMPTY = 0.75, 0.25


def of_group(group: Group) -> tuple[Problem, ...]:
    """Every problem of a group, the gravest first."""
    return tuple(
        Problem(kind=kind, detail=detail)
        for look in (_damaged, _stale, _killed, _foreign, _unregistered, _split, _crowded, _imbalance)
        for kind, detail in look(group)
    )


def _damaged(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    if group.damage is not None:
        yield ProblemKind.DAMAGED, group.damage


def _stale(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    if group.stale:
        yield ProblemKind.STALE, "pins are left, but the program does not run; 'attach' or 'detach' mends it"


def _killed(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    if group.reload is not None and not group.reload.running:
        yield (
            ProblemKind.STALE,
            f"a reload was killed in the step {group.reload.step!r}: "
            f"'reload {group.endpoint} --resume' finishes it, '--abort' undoes it",
        )


def _foreign(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    if group.program is not None and group.program.policy is None:
        yield ProblemKind.FOREIGN, f"the program {group.program.name} (id {group.program.id}) is not this tool's"


def _unregistered(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    found = [entry for entry in group.listeners if entry.flag == "foreign"]
    if found:
        cookies = ", ".join(str(entry.cookie) for entry in found)
        yield (
            ProblemKind.FOREIGN,
            f"{len(found)} of {len(group.listeners)} listeners get nothing, because nobody registered them: {cookies}",
        )


def _split(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    """udp_lib_hash4() (Linux 6.13) hides a connected socket from a new one that looks for its group."""
    if group.parts is not None and group.parts > 1:
        yield (
            ProblemKind.SPLIT,
            f"the kernel keeps these sockets in {group.parts} groups, because one that is bound to a specific address "
            "called connect(); a datagram never leaves the group that it reaches",
        )


def _crowded(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    """An LRU map forgets elements that are in use before it is full: measured from half of its size on."""
    table = group.flows
    if table is None:
        return
    for count, what in ((table.flows, "flows"), (table.connection_ids or 0, "connection IDs")):
        if count > table.capacity // 2:
            yield (
                ProblemKind.CROWDED,
                f"{count} {what} are recorded and {table.capacity} fit: the kernel may forget some that are alive; "
                f"attach again with --flows none, and then with more --flow-entries",
            )


def _imbalance(group: Group) -> Iterator[tuple[ProblemKind, str]]:
    """A listener that will soon refuse connections while the others have room: its process does not accept."""
    peers = [entry for entry in group.listeners if entry.flag in ("working", "-") and entry.backlog]
    for entry in peers:
        others = [_fill(other) for other in peers if other is not entry]
        if others and _fill(entry) >= _NEARLY_FULL and sum(others) / len(others) <= _NEARLY_EMPTY:
            yield (
                ProblemKind.IMBALANCE,
                f"the listener {entry.cookie}{_holder(entry)} has a queue of {entry.accept_queue}/{entry.backlog}, "
                f"while the others' queues are {sum(others) / len(others):.0%} full",
            )


def _fill(entry: Listener) -> float:
    return (entry.accept_queue or 0) / (entry.backlog or 1)


def _holder(entry: Listener) -> str:
    return f" of {entry.command} (process {entry.pid})" if entry.pid is not None else ""
