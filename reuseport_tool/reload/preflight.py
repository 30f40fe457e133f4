"""Compare the socket options of the old and the new listeners before connections are moved."""

from __future__ import annotations

import dataclasses

from reuseport_tool.kernel.sockets import ListenerOptions

# A moved connection was set up under the old listener's options, and keeps them.
_UNSAFE = {
    "save_syn": "the server would ask for a saved SYN that the connection does not have",
    "transparent": "the server would take a foreign address for its own, or not",
}


@dataclasses.dataclass(frozen=True)
class Differences:
    """Human-readable lines. `unsafe` stops a reload, `harmless` is worth a warning."""

    unsafe: tuple[str, ...]
    harmless: tuple[str, ...]


def compare(old: ListenerOptions, new: ListenerOptions) -> Differences:
    """What differs between an old and a new listener. An option the kernel did not tell is no difference."""
    unsafe, harmless = [], []
    for field in dataclasses.fields(ListenerOptions):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after or before is None or after is None:
            continue
        text = f"{field.name} is {before} on the old listeners and {after} on the new"
        if field.name in _UNSAFE:
            unsafe.append(f"{text}: {_UNSAFE[field.name]}")
        else:
            harmless.append(f"{text}; moved connections keep {before}")
    return Differences(tuple(unsafe), tuple(harmless))


def compare_capacity(queued: int, backlogs: list[int]) -> Differences:
    """Whether the connections that wait now have room in the new listeners' accept queues.

    Migration itself does not look at the backlog, but a queue above it refuses every new connection
    (inet_csk_reqsk_queue_is_full(), sk_acceptq_is_full()).
    """
    room = sum(backlogs)
    if queued <= room:
        return Differences((), ())
    return Differences((f"{queued} connections wait, and the new listeners' backlogs have room for {room}",), ())
